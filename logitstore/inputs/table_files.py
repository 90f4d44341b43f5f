"""Records of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.inputs.raw_record import RawRecord

ROWS_AT_ONCE = 1024


def read_parquet(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    parquet = pq.ParquetFile(file)
    yield from _rows(parquet.iter_batches(batch_size=ROWS_AT_ONCE), name)


def read_arrow(file: BinaryIO, name: str) -> Iterator[RawRecord]:
    """An IPC file, or a stream as `datasets` writes it."""
    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        yield from _rows((reader.get_batch(index) for index in range(reader.num_record_batches)), name)
        return
    file.seek(0)
    yield from _rows(iter(pa.ipc.open_stream(file)), name)


def _rows(batches: Iterator[pa.RecordBatch], name: str) -> Iterator[RawRecord]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            for row in batch.slice(start, ROWS_AT_ONCE).to_pylist():
                number += 1
                yield RawRecord(name, number, row, None)
