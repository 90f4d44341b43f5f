"""A store as an npz capture.

Shape legend: N label rows, K stored entries, T temperatures of the file (M elsewhere).
"""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from logitstore.common.store_warning import StoreWarning
from logitstore.errors import UnsupportedInputError
from logitstore.manifest.fields import MIXED, RECORD_PARTS, SEGMENTS
from logitstore.records import LabeledSequence
from logitstore.rows.selection import Selection
from logitstore.rows.temperature import cut_labels, cut_sequences
from logitstore.store import LogitStore

Progress = Callable[[str, int, int], None]


def export_npz(
    store: LogitStore,
    path: Path,
    *,
    selection: Selection | None = None,
    top_k: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a capture of the selected sequences; the number of rows. Memory stays at one shard.

    Segments have no place in a capture, as masks and flags have none, and the labels mean the same without:
    they are left out with a StoreWarning. Raises UnsupportedInputError for features that change the meaning.
    """
    labels = cut_labels(store.manifest.labels, top_k)
    if SEGMENTS in store.manifest.features:
        warnings.warn(
            f"{path} holds no segments, for which an npz capture has no place; parquet, arrow and jsonl have",
            StoreWarning,
            stacklevel=2,
        )
    if lost := [name for name in store.manifest.features if name not in (MIXED, SEGMENTS, RECORD_PARTS)]:
        raise UnsupportedInputError(
            f"{store.uri} has the features {', '.join(lost)}, for which an npz capture "
            "has no place: they would be lost; export as parquet, arrow or jsonl"
        )
    selection = selection or Selection()
    if not selection.takes_all:
        num_rows = sum(sequence.rows.num_rows for sequence in selection.sequences(store, top_k=1))
    else:
        num_rows = int(store.shards().column("num_rows").sum())
    num_temperatures = len(labels.temperatures)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "logits_NK": ((num_rows, labels.top_k), np.float32),
        "token_ids_NK": ((num_rows, labels.top_k), np.uint16 if labels.vocab_size <= 2**16 else np.uint32),
        "logsumexp_NT": ((num_rows, num_temperatures), np.float32),
        "log_tail_mass_NT": ((num_rows, num_temperatures), np.float32),
        "document_N": ((num_rows,), np.int64),
        "input_token_N": ((num_rows,), np.int32),
        "label_token_N": ((num_rows,), np.int32),
    }
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        arrays = {name: _create_array(Path(folder, name), *shape) for name, shape in shapes.items()}
        names, samples, row = [], [], 0
        for sequence in cut_sequences(selection.sequences(store), store.manifest.labels, top_k):
            _fill(arrays, row, len(names), sequence)
            names.append(sequence.record_id)
            samples.append(sequence.sample_index)
            row += sequence.rows.num_rows
            if progress:
                progress("rows", row, num_rows)
        arrays["record_id"] = np.array(names, dtype=np.str_)
        arrays["sample_index"] = np.array(samples, dtype=np.int32)
        arrays["temperatures"] = np.array(labels.temperatures, np.float32)
        arrays["vocab_size"] = np.array(labels.vocab_size)
        temporary = Path(folder, "npz")
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        temporary.replace(path)
    return num_rows


def _create_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)


def _fill(arrays: dict[str, np.ndarray], row: int, document: int, sequence: LabeledSequence) -> None:
    rows, start = sequence.rows, sequence.label_start
    span = slice(row, row + rows.num_rows)
    width = rows.logits_NK.shape[1]
    arrays["logits_NK"][span] = -np.inf
    arrays["logits_NK"][span, :width] = rows.logits_NK
    arrays["token_ids_NK"][span, :width] = rows.token_ids_NK
    arrays["logsumexp_NT"][span] = rows.logsumexp_NM
    arrays["log_tail_mass_NT"][span] = rows.log_tail_mass_NM
    arrays["document_N"][span] = document
    # One unknown token past the end: the last row may be of a token that the sequence does not have.
    tokens = np.append(sequence.token_ids_T, -1)
    arrays["input_token_N"][span] = tokens[start - 1 : start - 1 + rows.num_rows]
    arrays["label_token_N"][span] = tokens[start : start + rows.num_rows]
