"""Records of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.inputs.raw_record import RawRecord, columns_of_one_name

ROWS_AT_ONCE = 1024
NO_VALUE = (ValueError, OverflowError, pa.ArrowException)
"""Raised where Python has no value for what a cell holds: text that is not UTF-8, a year beyond 9999."""


def read_parquet(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    yield from _rows(parquet_batches(file, ROWS_AT_ONCE), name)


def read_arrow(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    """An IPC file, or a stream as `datasets` writes it."""
    yield from _rows(arrow_batches(file, ROWS_AT_ONCE), name)


def parquet_batches(file: BinaryIO, rows_at_once: int) -> Iterator[pa.RecordBatch]:
    yield from pq.ParquetFile(file).iter_batches(batch_size=rows_at_once)


def open_arrow(file: BinaryIO) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    """An IPC file, or a stream as `datasets` writes it."""
    if file.read(6) == b"ARROW1":
        return pa.ipc.open_file(file)
    file.seek(0)
    return pa.ipc.open_stream(file)


def arrow_batches(file: BinaryIO, rows_at_once: int) -> Iterator[pa.RecordBatch]:
    """The batches of an IPC file or stream."""
    reader = open_arrow(file)
    batches = (
        (reader.get_batch(index) for index in range(reader.num_record_batches))
        if isinstance(reader, pa.RecordBatchFileReader)
        else iter(reader)
    )
    for batch in batches:
        for start in range(0, batch.num_rows, rows_at_once):
            yield batch.slice(start, rows_at_once)


def _rows(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[RawRecord]:
    number = 0
    for batch in batches:
        if reason := columns_of_one_name(batch.schema.names):
            yield RawRecord(name, 0, None, reason)
            return
        for row in _values_of(batch):
            number += 1
            if isinstance(row, str):
                yield RawRecord(name, number, None, row)
            else:
                yield RawRecord(name, number, row, None, is_row=True)


def _values_of(batch: pa.RecordBatch) -> list[dict[str, Any] | str]:
    """Each row, or why it has none."""
    try:
        return batch.to_pylist()
    except NO_VALUE:
        return [_value_of(batch, place) for place in range(batch.num_rows)]


def _value_of(batch: pa.RecordBatch, place: int) -> dict[str, Any] | str:
    row: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[place].as_py()
        except NO_VALUE as error:
            return (
                f"its column {name!r} holds what cannot be read as a value ({error!s:.200}); repair it, or "
                "write the table without that column"
            )
    return row
