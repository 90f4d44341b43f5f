"""Work units: the slices of the plan that are leased, retried and committed, and their tokenised records.

A unit's records travel as one Arrow stream inside a segment of the plan, so that an actor reads exactly
its unit with one ranged request and needs neither the input nor a tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from labeler.records import PlannedRecord, TokenizedPrompt

_SCHEMA = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("file", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("prompt_token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_token_ids", pa.list_(pa.int32())),
        pa.field("label_start", pa.int32(), nullable=False),
        pa.field("loss_mask", pa.list_(pa.bool_())),
        pa.field("student_prompt_token_ids", pa.list_(pa.int32())),
        pa.field("segments", pa.list_(pa.int32())),
    ]
)
_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)
"""A unit is small: waking threads takes a third longer than doing their work."""
_OLDER_SCHEMAS = tuple(pa.schema(list(_SCHEMA)[:-fewer]) for fewer in (1, 2, 3))
"""Schemas of plans made before records could have segments, student prompts, loss masks."""


def unit_id_of(record_ids: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for record_id in record_ids:
        encoded = record_id.encode("utf-8", errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def encode_records(records: Sequence[PlannedRecord]) -> bytes:
    """The records as an Arrow stream, zstd-compressed."""
    prompts = [record.prompt for record in records]
    columns: list[pa.Array] = [
        pa.array([prompt.record_id for prompt in prompts], pa.string()),
        pa.array([record.file for record in records], pa.string()).dictionary_encode(),
        pa.array([record.line for record in records], pa.int64()),
        _lists([prompt.prompt_token_ids for prompt in prompts]),
        _lists([prompt.response_token_ids for prompt in prompts]),
        pa.array([prompt.label_start for prompt in prompts], pa.int32()),
        _masks([prompt.loss_mask_T for prompt in prompts]),
        _lists([prompt.student_prompt_token_ids for prompt in prompts]),
        _lists([prompt.segments_T for prompt in prompts]),
    ]
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, _SCHEMA, options=options) as writer:
        writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
    return sink.getvalue().to_pybytes()


def decode_records(content: bytes) -> list[PlannedRecord]:
    """The records of a unit. Raises ValueError where the bytes are not what `encode_records` wrote."""
    try:
        with pa.ipc.open_stream(content, options=_READ_OPTIONS) as reader:
            if reader.schema not in (_SCHEMA, *_OLDER_SCHEMAS):
                raise ValueError(f"a unit of the plan has the columns {reader.schema.names}")
            batch = reader.read_next_batch()
            batch.validate(full=True)
    except (pa.ArrowInvalid, StopIteration, OSError) as error:
        raise ValueError(f"a unit of the plan cannot be read ({error}); delete the store's plan/") from None
    columns: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
    masks = columns.get("loss_mask")
    theirs, segments = columns.get("student_prompt_token_ids"), columns.get("segments")
    prompts, responses = columns["prompt_token_ids"], columns["response_token_ids"]
    files, lines = columns["file"].to_pylist(), columns["line"].to_pylist()
    return [
        PlannedRecord(
            prompt=TokenizedPrompt(
                record_id=record_id,
                prompt_token_ids=_ids(prompts, i),
                response_token_ids=_ids(responses, i) if responses[i].is_valid else None,
                label_start=int(columns["label_start"][i].as_py()),
                loss_mask_T=None if masks is None else _mask(masks[i]),
                segments_T=_ids(segments, i).astype(np.uint8)
                if segments is not None and segments[i].is_valid
                else None,
                student_prompt_token_ids=_ids(theirs, i)
                if theirs is not None and theirs[i].is_valid
                else None,
            ),
            file=files[i],
            line=lines[i],
        )
        for i, record_id in enumerate(columns["record_id"].to_pylist())
    ]


def _lists(arrays: Sequence[np.ndarray | None]) -> pa.Array:
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    present = [array for array in arrays if array is not None]
    values = np.concatenate(present) if present else np.zeros(0, np.int32)
    missing = np.array([array is None for array in arrays])
    return pa.ListArray.from_arrays(
        pa.array(offsets),
        pa.array(values.astype(np.int32, copy=False)),
        mask=pa.array(missing) if missing.any() else None,
    )


def _masks(masks: Sequence[np.ndarray | None]) -> pa.Array:
    if all(mask is None for mask in masks):
        return pa.nulls(len(masks), pa.list_(pa.bool_()))
    return pa.array([None if mask is None else mask.tolist() for mask in masks], pa.list_(pa.bool_()))


def _mask(value: Any) -> np.ndarray | None:
    return np.asarray(value.values.to_numpy(zero_copy_only=False), bool) if value.is_valid else None


def _ids(column: Any, i: int) -> np.ndarray:
    return np.asarray(column[i].values.to_numpy(zero_copy_only=False), dtype=np.int32)
