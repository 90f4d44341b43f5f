"""A store as an npz capture.

Shape legend: N label rows, K stored entries, T temperatures of the file (M elsewhere).
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from logitstore.common.store_warning import StoreWarning
from logitstore.common.whole_file import check_replaceable, naming_full_disk
from logitstore.errors import UnsupportedInputError
from logitstore.manifest.fields import MIXED, RECORD_PARTS, SEGMENTS, LabelSpec
from logitstore.objects.room import SELECT_LESS, require_room
from logitstore.records import LabeledSequence
from logitstore.rows.selection import Selection
from logitstore.rows.temperature import cut_labels, cut_sequences
from logitstore.store import LogitStore

Progress = Callable[[str, int, int], None]
Announce = Callable[[int], None]
"""Called before anything is written with the bytes of disk that it needs, about."""
COPY_BYTES = 2**20


def export_npz(
    store: LogitStore,
    path: Path,
    *,
    selection: Selection | None = None,
    top_k: int | None = None,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a capture of the selected sequences; the number of rows. Memory stays at one block, and beside
    the file its arrays lie on the disk until it is whole.

    What has no place in a capture is left out with a StoreWarning: segments, flags, the tokens before the
    first row's context, sequences without rows; and rows that no loss counts are there like the others.
    Raises UnsupportedInputError for features that change the meaning of the labels, and where the disk has no
    room.
    """
    check_replaceable(path)
    labels = cut_labels(store.manifest.labels, top_k)
    if lost := [name for name in store.manifest.features if name not in (MIXED, SEGMENTS, RECORD_PARTS)]:
        raise UnsupportedInputError(
            f"{store.uri} has the features {', '.join(lost)}, for which an npz capture "
            "has no place: they would be lost; export as parquet, arrow or jsonl"
        )
    chosen = selection or Selection()
    num_bytes = _bytes_about(store, chosen, labels)
    if announce:
        announce(num_bytes)
    require_room(str(path.parent), num_bytes, "the export", SELECT_LESS)
    names: list[str] = []
    samples: list[int] = []
    left_out = Counter[str]()
    with (
        naming_full_disk(path),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder,
    ):
        with contextlib.ExitStack() as opened:
            columns = {
                name: _Column(opened.enter_context(Path(folder, name).open("w+b")), dtype, width)
                for name, (dtype, width) in _layout(labels).items()
            }
            for sequence in cut_sequences(chosen.sequences(store), store.manifest.labels, top_k):
                left_out += _without_place(sequence)
                if not sequence.rows.num_rows:  # an import would look for its rows
                    continue
                _append(columns, len(names), sequence)
                names.append(sequence.record_id)
                samples.append(sequence.sample_index)
                if progress:
                    progress("sequences", len(names), len(store))
            whole = {
                "record_id": np.array(names, dtype=np.str_),
                "sample_index": np.array(samples, dtype=np.int32),
                "temperatures": np.array(labels.temperatures, np.float32),
                "vocab_size": np.array(labels.vocab_size),
            }
            _write_archive(Path(folder, "npz"), columns, whole)
        Path(folder, "npz").replace(path)
    _warn_of(left_out, path)
    return columns["document_N"].num_rows


def _bytes_about(store: LogitStore, selection: Selection, labels: LabelSpec) -> int:
    """What the arrays take, and as much again: they lie beside the file until it is whole."""
    num_rows = selection.count_about(store, selection.parts(store), "num_rows")
    return (
        2 * num_rows * sum(np.dtype(kind).itemsize * (width or 1) for kind, width in _layout(labels).values())
    )


def _without_place(sequence: LabeledSequence) -> Counter[str]:
    """What of a sequence a capture does not hold, and how much."""
    num_rows = sequence.rows.num_rows
    found = {
        "sequences without label rows": int(not num_rows),
        "tokens before the context of a first row": sequence.label_start - 1 if num_rows else 0,
        "marks of rows that no loss counts": int((~sequence.loss_mask_N).sum()),
        "segments of sequences": int(sequence.segments_T is not None),
        "flags": len(sequence.flags),
    }
    return Counter({what: count for what, count in found.items() if count})


def _warn_of(left_out: Counter[str], path: Path) -> None:
    if left_out:
        told = ", ".join(f"{what} ({count:,})" for what, count in left_out.items())
        warnings.warn(
            f"{path}: an npz capture has no place for what is left out here: {told}; parquet, arrow and "
            "jsonl have",
            StoreWarning,
            stacklevel=3,
        )


def _write_archive(path: Path, columns: Mapping[str, _Column], whole: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                column.write_to(member)
        for name, array in whole.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _layout(labels: LabelSpec) -> dict[str, tuple[Any, int | None]]:
    """Type and width of each array that has a row for every label row; the width is None for a plain one."""
    num_temperatures = len(labels.temperatures)
    return {
        "logits_NK": (np.float32, labels.top_k),
        "token_ids_NK": (np.uint16 if labels.vocab_size <= 2**16 else np.uint32, labels.top_k),
        "logsumexp_NT": (np.float32, num_temperatures),
        "log_tail_mass_NT": (np.float32, num_temperatures),
        "document_N": (np.int64, None),
        "input_token_N": (np.int32, None),
        "label_token_N": (np.int32, None),
    }


class _Column:
    """An array of as yet unknown length, in a file of its own."""

    def __init__(self, file: BinaryIO, dtype: Any, width: int | None) -> None:
        self._file, self._dtype, self._width = file, np.dtype(dtype), width
        self.num_rows = 0

    def append(self, values: np.ndarray, filling: float = 0) -> None:
        """Rows, which are filled up to the width."""
        part = values.astype(self._dtype, copy=False)
        if self._width is not None and part.shape[1] < self._width:
            narrow, part = part, np.full((len(part), self._width), filling, self._dtype)
            part[:, : narrow.shape[1]] = narrow
        self._file.write(np.ascontiguousarray(part).data)
        self.num_rows += len(part)

    def write_to(self, member: IO[bytes]) -> None:
        shape = (self.num_rows,) if self._width is None else (self.num_rows, self._width)
        head = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, head)  # type: ignore[arg-type]
        self._file.seek(0)
        shutil.copyfileobj(self._file, member, COPY_BYTES)


def _append(columns: Mapping[str, _Column], document: int, sequence: LabeledSequence) -> None:
    rows, start = sequence.rows, sequence.label_start
    columns["logits_NK"].append(rows.logits_NK, -np.inf)
    columns["token_ids_NK"].append(rows.token_ids_NK)
    columns["logsumexp_NT"].append(rows.logsumexp_NM)
    columns["log_tail_mass_NT"].append(rows.log_tail_mass_NM)
    columns["document_N"].append(np.full(rows.num_rows, document))
    # One unknown token past the end: the last row may be of a token that the sequence does not have.
    tokens = np.append(sequence.token_ids_T, -1)
    columns["input_token_N"].append(tokens[start - 1 : start - 1 + rows.num_rows])
    columns["label_token_N"].append(tokens[start : start + rows.num_rows])
