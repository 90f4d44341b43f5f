"""What is known of accelerators by their names: memory, maker, and what others call them."""

from __future__ import annotations

import re

MEMORY_GB: dict[str, float] = {
    "T4": 16, "V100": 16, "V100-32GB": 32, "A10G": 24, "A10": 24, "A30": 24, "A40": 48, "L4": 24, "L40": 48,
    "L40S": 48, "A100-40GB": 40, "A100-80GB": 80, "H100": 80, "H100-NVL": 94, "GH200": 96, "H200": 141,
    "B200": 180, "MI300X": 192, "MI325X": 256,
}  # fmt: skip
"""Memory of one, in GB, as NVIDIA's and AMD's data sheets say; the smallest where there are several sizes."""
NAMES_OF_SKYPILOT = {"A100-40GB": "A100"}
"""Where its catalog has another name; `A100` there is that of 40 GB, and `A100-40GB` none."""
_SLICE = re.compile(r"nvidia\.com/mig-\d+g\.(\d+)gb(\.me)?")


def check_accelerator(name: str) -> str:
    """Raises ValueError for another spelling of a known name, which would be a GPU that nothing is known of,
    and for what no engine here runs on."""
    plain = _plain(name)
    meant = [known for known in MEMORY_GB if _plain(known) == plain]
    if meant and name not in meant:
        raise ValueError(f"nothing is known of {name!r}; write it as {meant[0]!r}")
    sizes = sorted(known for known in MEMORY_GB if known.startswith(f"{name}-"))
    if name and name not in MEMORY_GB and sizes:
        raise ValueError(f"there are several {name}; write {' or '.join(map(repr, sizes))}")
    if plain.startswith(("tpu", "inferentia", "trainium", "gaudi")):
        raise ValueError(
            f"{name!r} is no GPU, and the labeler's engine runs on GPUs and CPU cores; name a GPU"
        )
    return name


def is_amd(name: str) -> bool:
    return re.match(r"MI\d", name) is not None


def slice_gb(resource: str) -> float | None:
    """Memory of a part of a GPU, of a resource as nvidia.com/mig-3g.40gb; None for whole ones."""
    found = _SLICE.fullmatch(resource)
    return float(found[1]) if found else None


def _plain(name: str) -> str:
    return re.sub(r"^nvidia|^amd|[^a-z0-9]", "", name.lower())
