"""Snapshots of a student during training: its distribution at the ids that its teacher's label rows store.

`snapshots.npz` beside a student is a NumPy archive without pickles. `head` (uint8) is JSON:

    {"format": "penumbra-snapshots", "version": 1, "steps": [0, 5, ...],
     "sequences": [{"store", "record_id", "sample_index", "temperatures", "vocab_size"}, ...]}

and each sequence i has, for the first N label rows that its store holds of it:

    token_ids_i        int32   [N, K]     the ids that the store holds, in its order
    count_i            int32   [N]        how many of them are real, from the first on
    logits_i           float32 [S, N, K]  the student's logits at these ids, -inf for one that it lacks
    logsumexp_i        float32 [S, N, M]  logsumexp(logits / T) over the student's whole vocabulary
    log_tail_mass_i    float32 [S, N, M]  log of its mass outside these ids, -inf where there is none
    label_logprob_i    float32 [S, N]     of the actual token at T = 1, NaN where it is not known
    label_rank_i       int32   [S, N]     1 for the student's first choice, 0 where it is not known
    own_token_ids_i    int32   [S, N]     the student's first choice
    own_logits_i       float32 [S, N]     and its logit

Shape legend: S snapshots, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from logitstore.common.whole_file import naming_full_disk
from logitstore.errors import UnsupportedFormatError
from logitstore.records import LabelRows

SNAPSHOTS_NAME = "snapshots.npz"
FORMAT = "penumbra-snapshots"
VERSION = 1
MAX_BYTES = 1 << 30
"""Most bytes of all arrays together; a larger file is refused before it is read."""


_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,  # encrypted members, unknown compression and JSON that is too deep
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading raises of an archive that is damaged, or another's."""


@dataclass(frozen=True, slots=True)
class StudentRows:
    """A student's distribution at consecutive label rows of one sequence."""

    rows: LabelRows
    """Like the teacher's, but entries are in the teacher's order, not in the student's."""
    own_token_ids_N: np.ndarray
    """int32, the student's first choice, stored by the teacher or not."""
    own_logits_N: np.ndarray
    """float32, its logit."""


@dataclass(frozen=True, slots=True)
class FollowedSequence:
    """One sequence whose label rows were looked at in every snapshot."""

    store: str
    """URI of its store, as the training run named it."""
    record_id: str
    sample_index: int
    temperatures: tuple[float, ...]
    """Temperatures of the normalisers and tails, ascending; the first is 1."""
    vocab_size: int
    """Ids among which the student's mass lies."""
    snapshots: tuple[StudentRows, ...]
    """By step."""

    @property
    def num_rows(self) -> int:
        return self.snapshots[0].rows.num_rows


@dataclass(frozen=True, slots=True)
class Snapshots:
    """What `snapshots.npz` holds."""

    steps: tuple[int, ...]
    """Optimizer steps done at each snapshot, ascending; 0 is the student before training."""
    sequences: tuple[FollowedSequence, ...]

    def until(self, step: int) -> Snapshots:
        """Those taken up to a step."""
        count = sum(1 for taken in self.steps if taken <= step)
        kept = tuple(replace(one, snapshots=one.snapshots[:count]) for one in self.sequences)
        return Snapshots(self.steps[:count], kept)

    def with_step(self, step: int, rows: Sequence[StudentRows]) -> Snapshots:
        """One more, of each sequence; a snapshot of the same step is replaced."""
        before = self.until(step - 1)
        pairs = zip(before.sequences, rows, strict=True)
        return Snapshots(
            (*before.steps, step), tuple(replace(one, snapshots=(*one.snapshots, new)) for one, new in pairs)
        )


def write_snapshots(snapshots: Snapshots, folder: Path) -> None:
    """Write the file into a student's folder; it appears as a whole."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "steps": snapshots.steps,
        "sequences": [
            {
                "store": one.store,
                "record_id": one.record_id,
                "sample_index": one.sample_index,
                "temperatures": one.temperatures,
                "vocab_size": one.vocab_size,
            }
            for one in snapshots.sequences
        ],
    }
    arrays = {"head": np.frombuffer(json.dumps(head).encode(), np.uint8)}
    for place, one in enumerate(snapshots.sequences):
        arrays |= {f"{name}_{place}": array for name, array in _arrays_of(one).items()}
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=SNAPSHOTS_NAME, suffix=".tmp")
    try:
        with naming_full_disk(folder / SNAPSHOTS_NAME), os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.chmod(temporary, 0o644)
        os.replace(temporary, folder / SNAPSHOTS_NAME)
    except BaseException:
        os.unlink(temporary)
        raise


def read_snapshots(folder: Path) -> Snapshots:
    """The snapshots in a student's folder.

    Raises:
        FileNotFoundError: the folder holds none.
        UnsupportedFormatError: the file is not what this version writes.
    """
    path = folder / SNAPSHOTS_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no {SNAPSHOTS_NAME}: training writes it where evaluation.snapshots is at "
            "least 1; give the folder of such a student"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"its arrays take {size:,} bytes, at most {MAX_BYTES:,} are read")
        with np.load(path, allow_pickle=False) as arrays:
            return _snapshots_of(json.loads(arrays["head"].tobytes()), arrays)
    except _DAMAGED as error:
        raise UnsupportedFormatError(
            f"{path} is not what this version writes ({error}); train again, or remove the file"
        ) from None


_ROW_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("logits", "<f4", "SNK"),
    ("logsumexp", "<f4", "SNM"),
    ("log_tail_mass", "<f4", "SNM"),
    ("label_logprob", "<f4", "SN"),
    ("label_rank", "<i4", "SN"),
    ("own_token_ids", "<i4", "SN"),
    ("own_logits", "<f4", "SN"),
)
"""Name, type and shape of what each snapshot adds."""


def _arrays_of(one: FollowedSequence) -> dict[str, np.ndarray]:
    first = one.snapshots[0].rows
    by_name = [
        {
            "logits": taken.rows.logits_NK,
            "logsumexp": taken.rows.logsumexp_NM,
            "log_tail_mass": taken.rows.log_tail_mass_NM,
            "label_logprob": taken.rows.label_logprob_N,
            "label_rank": taken.rows.label_rank_N,
            "own_token_ids": taken.own_token_ids_N,
            "own_logits": taken.own_logits_N,
        }
        for taken in one.snapshots
    ]
    stacked = {name: np.stack([arrays[name] for arrays in by_name]) for name in by_name[0]}
    return {"token_ids": first.token_ids_NK, "count": first.count_N, **stacked}


def _snapshots_of(head: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Snapshots:
    if head["format"] != FORMAT or head["version"] != VERSION:
        raise ValueError(f"it is {head['format']!r} version {head['version']!r}, not {FORMAT!r} {VERSION}")
    steps = tuple(int(step) for step in head["steps"])
    if head["sequences"] and not steps:
        raise ValueError("it has sequences and no snapshot of them")
    sequences = tuple(
        _sequence_of(described, {name: arrays[f"{name}_{place}"] for name in ("token_ids", "count")}
        | {name: arrays[f"{name}_{place}"] for name, _, _ in _ROW_FIELDS}, len(steps))
        for place, described in enumerate(head["sequences"])
    )  # fmt: skip
    return Snapshots(steps, sequences)


def _sequence_of(
    described: Mapping[str, Any], arrays: Mapping[str, np.ndarray], num_steps: int
) -> FollowedSequence:
    temperatures = tuple(float(one) for one in described["temperatures"])
    num_rows, top_k = arrays["token_ids"].shape
    sizes = {"S": num_steps, "N": num_rows, "K": top_k, "M": len(temperatures)}
    for name, dtype, axes in (("token_ids", "<i4", "NK"), ("count", "<i4", "N"), *_ROW_FIELDS):
        expected = tuple(sizes[axis] for axis in axes)
        if arrays[name].shape != expected or arrays[name].dtype != np.dtype(dtype):
            raise ValueError(
                f"{name} is {arrays[name].dtype} {arrays[name].shape}, and not {dtype} {expected}"
            )
    snapshots = tuple(
        StudentRows(
            LabelRows(
                logits_NK=arrays["logits"][step],
                token_ids_NK=arrays["token_ids"],
                count_N=arrays["count"],
                logsumexp_NM=arrays["logsumexp"][step],
                log_tail_mass_NM=arrays["log_tail_mass"][step],
                label_logprob_N=arrays["label_logprob"][step],
                label_rank_N=arrays["label_rank"][step],
            ),
            arrays["own_token_ids"][step],
            arrays["own_logits"][step],
        )
        for step in range(num_steps)
    )
    return FollowedSequence(
        store=str(described["store"]),
        record_id=str(described["record_id"]),
        sample_index=int(described["sample_index"]),
        temperatures=temperatures,
        vocab_size=int(described["vocab_size"]),
        snapshots=snapshots,
    )
