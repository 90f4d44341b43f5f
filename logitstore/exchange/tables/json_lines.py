"""Sequences as lines of JSON, for people and for tools that read nothing else.

A float32 has the digits that tell it from its neighbours, so whoever reads it as float32 gets the same bits.
No entry of a row becomes a Python object: orjson (the extra `fast`) writes whole arrays, in a fraction of the
time of Arrow's casts, which do where it is not installed.

Shape legend: T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.exchange.tables.arrays import record_batch
from logitstore.inputs.raw_record import MANIFEST_KEY
from logitstore.manifest import strict_json
from logitstore.manifest.fields import Manifest
from logitstore.shard.assembling import BlockSequences


def head_line(manifest: Manifest) -> bytes:
    """The first line, by which `import` knows the store."""
    return json.dumps({MANIFEST_KEY: json.loads(strict_json.encode(manifest))}).encode() + b"\n"


def json_lines(blocks: Sequence[BlockSequences], schema: pa.Schema) -> bytes:
    """A line for each sequence, with the columns of a table's schema.

    Entries beyond a row's count are left out. Infinities and NaN, which JSON lacks, are null, and columns
    that a sequence has nothing for are absent.
    """
    batch = record_batch(blocks, schema)
    write = array_writer()
    return lines_by_arrow(batch) if write is None else _lines_by(write, batch)


@functools.cache
def array_writer() -> Callable[[dict[str, Any]], bytes] | None:
    """A line of a record whose values may be arrays; None where orjson is not installed."""
    try:
        import orjson  # type: ignore[import-not-found]
    except ImportError:
        return None
    return functools.partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _lines_by(write: Callable[[dict[str, Any]], bytes], batch: pa.RecordBatch) -> bytes:
    values = [_values_of(column) for column in batch.columns]
    records = (
        {name: value for name, value in zip(batch.schema.names, row, strict=True) if value is not None}
        for row in zip(*values, strict=True)
    )
    return b"".join(map(write, records))


def _values_of(column: pa.Array) -> Sequence[Any]:
    """For each sequence, what the writer takes: a number, a text, an array, or a list of arrays."""
    kind = column.type
    if not pa.types.is_list(kind) or pa.types.is_string(kind.value_type):
        return column.to_pylist()
    ends = column.offsets.to_numpy()[1:-1]
    if not pa.types.is_list(kind.value_type):
        parts = np.split(column.values.to_numpy(zero_copy_only=False), ends)
    else:
        rows, starts = column.values, column.values.offsets.to_numpy()
        entries = rows.values.to_numpy(zero_copy_only=False)
        parts = [
            _table(entries, starts[first : last + 1])
            for first, last in zip([0, *ends], [*ends, len(rows)], strict=True)
        ]
    if not column.null_count:
        return parts
    return [part if valid else None for part, valid in zip(parts, column.is_valid().to_pylist(), strict=True)]


def _table(entries: np.ndarray, starts: np.ndarray) -> np.ndarray | list[np.ndarray]:
    """The rows between these places, as one array where all are of one length."""
    lengths = np.diff(starts)
    some = entries[starts[0] : starts[-1]]
    if len(lengths) and (lengths == lengths[0]).all():
        return some.reshape(len(lengths), -1) if lengths[0] else [some] * len(lengths)
    return np.split(some, starts[1:-1] - starts[0]) if len(lengths) else []


def lines_by_arrow(batch: pa.RecordBatch) -> bytes:
    """The lines of a batch without orjson: numbers become text in whole arrays, and lists by joining."""
    parts: list[pa.Array] = []
    for number, (name, column) in enumerate(zip(batch.schema.names, batch.columns, strict=True)):
        text = _joined(f'{"," if number else "{"}"{name}":', _text_of(column))
        parts.append(text.fill_null("") if column.null_count else text)
    return b"".join(line.as_buffer() for line in _joined(*parts, "}\n"))


def _text_of(values: pa.Array) -> pa.Array:
    """The JSON of each value; null for a null."""
    kind = values.type
    if pa.types.is_list(kind):
        lengths = pc.call_function("list_value_length", [values]).fill_null(0)
        ends = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))])
        lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), _text_of(values.flatten()))
        text = _joined("[", pc.call_function("binary_join", [lists, pa.scalar(",")]), "]")
        return _where(values.is_null(), pa.scalar(None, pa.string()), text) if values.null_count else text
    if pa.types.is_string(kind):
        return pa.array([json.dumps(value, ensure_ascii=False) for value in values.to_pylist()], pa.string())
    if pa.types.is_floating(kind):
        text = values.cast(pa.string())
        numbers = values.to_numpy(zero_copy_only=False)
        finite = np.isfinite(numbers)
        if not finite.all():
            text = _where(pa.array(finite), text, pa.scalar("null"))
        is_minus_zero = (numbers == 0) & np.signbit(numbers)
        if is_minus_zero.any():
            text = _where(pa.array(is_minus_zero), pa.scalar("-0.0"), text)  # "-0" is a number without a sign
        return text
    return values.cast(pa.string())


def _joined(*parts: pa.Array | str) -> pa.Array:
    """The texts of the parts, one after the other; null where one is."""
    scalars = [pa.scalar(part) if isinstance(part, str) else part for part in parts]
    return pc.call_function("binary_join_element_wise", [*scalars, pa.scalar("")])


def _where(condition: pa.Array, then: pa.Array | pa.Scalar, otherwise: pa.Array | pa.Scalar) -> pa.Array:
    return pc.call_function("if_else", [condition, then, otherwise])
