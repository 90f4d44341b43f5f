"""Sequences as lines of JSON, for people and for tools that read nothing else.

Numbers become text in whole arrays, and lists of them by joining; no entry of a row becomes a Python object.

Shape legend: T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from logitstore.exchange.tables.arrays import record_batch
from logitstore.exchange.tables.columns import JSONL_MANIFEST_KEY
from logitstore.manifest import strict_json
from logitstore.manifest.fields import Manifest
from logitstore.shard.assembling import BlockSequences


def head_line(manifest: Manifest) -> bytes:
    """The first line, by which `import` knows the store."""
    return json.dumps({JSONL_MANIFEST_KEY: json.loads(strict_json.encode(manifest))}).encode() + b"\n"


def json_lines(blocks: Sequence[BlockSequences], schema: pa.Schema) -> bytes:
    """A line for each sequence, with the columns of a table's schema.

    Entries beyond a row's count are left out. Infinities and NaN, which JSON lacks, are null, and columns
    that a sequence has nothing for are absent.
    """
    batch = record_batch(blocks, schema)
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
        exact = values.cast(pa.float64())  # all the digits, so that any reader gets the same float32
        text = exact.cast(pa.string())
        numbers = exact.to_numpy(zero_copy_only=False)
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
