"""What is known of accelerators by their names: memory, maker, and what others call them."""

from __future__ import annotations

import re

MEMORY_GIB: dict[str, float] = {
    "T4": 16, "V100": 16, "V100-32GB": 32, "A10G": 24, "A10": 24, "A30": 24, "A40": 48, "L4": 24, "L40": 48,
    "L40S": 48, "A100-40GB": 40, "A100-80GB": 80, "H100": 80, "H100-NVL": 94, "GH200": 96, "H200": 141,
    "B200": 180, "MI300X": 192, "MI325X": 256,
}  # fmt: skip
"""Memory of one, as NVIDIA's and AMD's data sheets say under the name of GB; the smallest where there are
several sizes. Drivers report as many GiB or a little less (an H100 81,559 MiB), so it is an upper bound."""
GB_OF_GIB = 2**30 / 1e9
NAMES_OF_SKYPILOT = {"A100-40GB": "A100"}
"""Where its catalog has another name; `A100` there is that of 40 GB, and `A100-40GB` none."""
_FORMS = frozenset(
    (
        "nvidia",
        "amd",
        "tesla",
        "instinct",
        "gpu",
        "pcie",
        "oam",
        *(f"sxm{number}" for number in ("", *range(2, 7))),
    )
)
"""Words of makers and forms, as in NVIDIA-A100-SXM4-80GB, AMD-Instinct-MI300X-OAM and nvidia-tesla-t4."""
_SLICE = re.compile(r"nvidia\.com/mig-\d+g\.(\d+)gb(\.me)?")


def check_accelerator(name: str) -> str:
    """Raises ValueError for another spelling of a known name, which would be a GPU that nothing is known of,
    and for what no engine here runs on."""
    meant = _meant(name)
    if len(meant) == 1 and name not in meant:
        raise ValueError(f"nothing is known of {name!r}; write it as {meant[0]!r}")
    if len(meant) > 1:
        raise ValueError(f"there are several {name}; write {' or '.join(map(repr, meant))}")
    if _plain(name).startswith(("tpu", "inferentia", "trainium", "gaudi", "intelgaudi")):
        raise ValueError(
            f"{name!r} is no GPU, and the labeler's engine runs on GPUs and CPU cores; name a GPU"
        )
    return name


def known_memory_gb(name: str) -> float | None:
    """At most how much memory one has, in 10^9 bytes, by any name of it; of the smallest where there are
    several sizes; None: not known."""
    return min((MEMORY_GIB[known] * GB_OF_GIB for known in _meant(name)), default=None)


def is_amd(name: str) -> bool:
    return re.search(r"(?i)\b(amd|instinct|radeon)\b|\bMI\d", name) is not None


def slice_gb(resource: str) -> float | None:
    """Memory of a part of a GPU, in 10^9 bytes, by its resource (nvidia.com/mig-3g.40gb), or None."""
    found = _SLICE.fullmatch(resource)
    return float(found[1]) * GB_OF_GIB if found else None


def _meant(name: str) -> list[str]:
    """Known names of which `name` is a spelling; several for one without its size, as A100."""
    plain = _plain(name)
    found = [
        known for known, size in MEMORY_GIB.items() if plain in (_plain(known), f"{_plain(known)}{size:g}gb")
    ]
    return found or sorted(
        known for known in MEMORY_GIB if plain and _plain(known.partition("-")[0]) == plain
    )


def _plain(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", name.lower())
    words = [word.removeprefix("nvidia").removeprefix("amd") for word in words if word not in _FORMS]
    return re.sub(r"(\d)g$", r"\1gb", "".join(words))
