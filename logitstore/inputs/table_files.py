"""Records of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.inputs.raw_record import RawRecord

ROWS_AT_ONCE = 1024


def read_parquet(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    yield from _rows(parquet_batches(file, ROWS_AT_ONCE), name)


def read_arrow(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    """An IPC file, or a stream as `datasets` writes it."""
    yield from _rows(arrow_batches(file, ROWS_AT_ONCE), name)


def parquet_batches(file: BinaryIO, rows_at_once: int) -> Iterator[pa.RecordBatch]:
    yield from pq.ParquetFile(file).iter_batches(batch_size=rows_at_once)


def arrow_batches(file: BinaryIO, rows_at_once: int) -> Iterator[pa.RecordBatch]:
    """The batches of an IPC file, or of a stream as `datasets` writes it."""
    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        file.seek(0)
        batches = iter(pa.ipc.open_stream(file))
    for batch in batches:
        for start in range(0, batch.num_rows, rows_at_once):
            yield batch.slice(start, rows_at_once)


def _rows(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[RawRecord]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield RawRecord(name, number, row, None, is_row=True)
