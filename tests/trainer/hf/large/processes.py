"""Two real processes over gloo, as torchrun would start them, each of which leaves what it saw as JSON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).parents[4]
NUM_PROCESSES = 2
DEEPSPEED = ROOT / ".venv" / "aside" / "deepspeed"
"""Where tools/setup.sh has installed it."""


def deepspeed_environment() -> dict[str, str]:
    paths = [str(DEEPSPEED), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "DS_ACCELERATOR": "cpu"}


def run_processes(
    module: str,
    *arguments: str,
    folder: Path,
    environment: Mapping[str, str] = MappingProxyType({}),
    timeout_sec: float = 540,
) -> tuple[list[Any], list[str]]:
    """(what `python -m module arguments folder` wrote as rank-R.json, its output), each by rank."""
    command = [sys.executable, "-m", module, *arguments, str(folder)]
    outputs = run_command(command, environment=environment, timeout_sec=timeout_sec)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(NUM_PROCESSES)], outputs


def run_command(
    command: list[str],
    *,
    environment: Mapping[str, str] = MappingProxyType({}),
    timeout_sec: float = 540,
) -> list[str]:
    """What each of the processes printed; all have to end well."""
    with socket.socket() as reserved:  # bound but not listening: nobody else gets it, the first process can
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        common = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(reserved.getsockname()[1]),
            "WORLD_SIZE": str(NUM_PROCESSES),
            "LOCAL_WORLD_SIZE": str(NUM_PROCESSES),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(NUM_PROCESSES)
        ]
        try:
            outputs = [process.communicate(timeout=timeout_sec)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)[-4000:]
    return outputs
