"""Whether a job's store and its teacher's weights fit the disks of this machine, before anything starts.

Warnings only: a disk may be cleared meanwhile, and a cache be somewhere else for the workers.
"""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path

from labeler.config.loading import JobConfig, LabelsConfig, is_local_path
from labeler.planning.fit.gpu_memory import GB, stored_weights
from logitstore.objects.addresses import path_of_file_url
from logitstore.objects.room import nearest_existing

BYTES_PER_ROW = {16: 39.0, 32: 71.0, 64: 131.0, 128: 249.0}
"""Stored bytes of a label row by K with shared codebooks, for a vocabulary of 49,152 (see FORMAT.md)."""


BYTES_PER_TEXT_TOKEN = 3.0
"""A token in a store of texts alone: its id, uncompressed."""


def bytes_per_label(labels: LabelsConfig) -> float:
    """Bytes to expect for a labeled token."""
    return bytes_per_row(labels.top_k) if labels.rows else BYTES_PER_TEXT_TOKEN


def bytes_per_row(top_k: int) -> float:
    """Bytes to expect for a row of `top_k` entries: measured values, interpolated in log K."""
    sizes = sorted(BYTES_PER_ROW.items())
    if top_k <= sizes[0][0]:
        return sizes[0][1] * top_k / sizes[0][0]
    for (low_k, low), (high_k, high) in itertools.pairwise(sizes):
        if top_k <= high_k:
            share = (math.log(top_k) - math.log(low_k)) / (math.log(high_k) - math.log(low_k))
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return sizes[-1][1] * top_k / sizes[-1][0]


def store_bytes_at_most(job: JobConfig) -> float | None:
    """Stored bytes if every answer is as long as it may be; None where the input must be read to know."""
    if job.labels.mode != "generate" or job.input.limit is None:
        return None
    num_records = len(range(job.input.limit)[slice(*job.input.taken)])
    return num_records * job.sampling.n * job.sampling.max_tokens * bytes_per_label(job.labels)


def disk_lines(job: JobConfig, store_bytes: float) -> list[str]:
    """A warning for the store, and one for the weights that a teacher on this machine has yet to fetch."""
    lines = []
    if is_local_path(job.output.uri):
        folder = nearest_existing(Path(path_of_file_url(job.output.uri)))
        lines += _lack("the store needs", store_bytes, folder, "output.uri")
    weights = stored_weights(job)
    if weights is not None and job.workers.address is None:
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = Path(HF_HUB_CACHE)
        kept = cache / f"models--{job.teacher.model.replace('/', '--')}" / "blobs"
        lines += _lack(
            f"the teacher's weights are {weights}, of which have yet to be fetched",
            weights.num_bytes - _num_bytes(kept),
            nearest_existing(cache),
            "HF_HOME",
        )
    return lines


def _lack(what: str, num_bytes: float, folder: Path, setting: str) -> list[str]:
    free = shutil.disk_usage(folder).free
    if num_bytes <= free:
        return []
    return [
        f"WARNING: {what} {_amount(num_bytes)}, but the disk of {folder} has {_amount(free)} free; "
        f"make room there, or set {setting} to another place"
    ]


def _amount(num_bytes: float) -> str:
    return f"{num_bytes / GB:,.1f} GB" if num_bytes >= GB / 10 else f"{num_bytes / 1e6:,.1f} MB"


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
