"""Writing tables: one file, or several at any address, decoded and written in threads.

Decoding, and what Parquet does, release the interpreter's lock.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.errors import UnsupportedInputError
from logitstore.exchange.tables.arrays import record_batch
from logitstore.exchange.tables.columns import table_schema
from logitstore.exchange.tables.json_lines import write_head, write_json_line
from logitstore.manifest.fields import Manifest
from logitstore.objects.opening import Objects
from logitstore.objects.room import require_room
from logitstore.records import LabeledSequence
from logitstore.rows.selection import Selection, ShardPart
from logitstore.rows.temperature import cut_labels, cut_sequences
from logitstore.store import LogitStore

Progress = Callable[[str, int, int], None]
Announce = Callable[[int], None]
"""Called before anything is written with the bytes that it will take, about."""
ROWS_PER_BATCH = 256
"""Sequences per record batch."""
ROW_GROUP_BYTES = 32 * 2**20
"""Of arrays that make a row group of Parquet."""
FILE_BYTES = 64 * 2**20
"""Labels, as the store holds them, that one of several files takes; Parquet makes about twice of them."""
THREADS = 4
SAMPLE_SEQUENCES = 8
"""So many of the first sequences are written to nowhere, to know what all will take."""
_PLANES = tuple(
    f"{name}.list.element.list.element" for name in ("top_ids", "top_logits", "logsumexp", "log_tail_mass")
)
"""Columns that Parquet writes byte by byte: half the size, and less to compress."""
_PART_NAME = re.compile(r"part-\d{5}-of-(\d{5})\.(parquet|arrow|jsonl)")


Content = list[LabeledSequence] | list[pa.RecordBatch]
"""What is written of one shard: its sequences for JSONL, else record batches."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    num_sequences: int
    num_files: int
    num_bytes: int


@dataclass(frozen=True)
class _Table:
    """What is written, and how."""

    store: LogitStore
    form: str
    selection: Selection
    top_k: int | None

    @cached_property
    def manifest(self) -> Manifest:
        manifest = self.store.manifest
        return dataclasses.replace(manifest, labels=cut_labels(manifest.labels, self.top_k))

    @cached_property
    def schema(self) -> pa.Schema:
        return table_schema(self.manifest)

    def sequences(self, part: ShardPart) -> Iterator[LabeledSequence]:
        found = self.selection.of_part(self.store, part)
        return cut_sequences(found, self.store.manifest.labels, self.top_k)

    def write(self, file: pa.NativeFile, parts: Iterable[Content]) -> None:
        """Whole parts, of sequences for JSONL, else of record batches."""
        if self.form == "jsonl":
            text = io.TextIOWrapper(cast("BinaryIO", file), encoding="utf-8", write_through=True)
            write_head(self.manifest, text)
            for part in parts:
                for sequence in part:
                    assert isinstance(sequence, LabeledSequence)
                    write_json_line(sequence, text)
            text.detach()
            return
        schema = self.schema
        with _writer(file, schema, self.form) as writer:
            for group in _row_groups(parts):
                writer.write_table(pa.Table.from_batches(group, schema).combine_chunks())

    def content(self, part: ShardPart) -> Content:
        """What `write` takes of one shard."""
        sequences = self.sequences(part)
        return list(sequences) if self.form == "jsonl" else self.batches(sequences)

    def batches(self, sequences: Iterable[LabeledSequence]) -> list[pa.RecordBatch]:
        schema = self.schema
        waiting, found = iter(sequences), list[pa.RecordBatch]()
        while some := list(itertools.islice(waiting, ROWS_PER_BATCH)):
            found.append(record_batch(some, schema))
        return found

    def bytes_per_row(self, parts: list[ShardPart]) -> float:
        """Bytes a label row takes, by the first sequences; 0 for none."""
        every = (sequence for part in parts for sequence in self.sequences(part))
        sample = list(itertools.islice(every, SAMPLE_SEQUENCES))
        sink = pa.BufferOutputStream()
        self.write(sink, [sample if self.form == "jsonl" else self.batches(sample)])
        return sink.getvalue().size / max(1, sum(one.rows.num_rows for one in sample))

    def require_room(self, uri: str, parts: list[ShardPart], announce: Announce | None) -> None:
        """Tell what all will take. Raises UnsupportedInputError where a local disk has no room for it."""
        num_bytes = int(self.selection.count_rows(self.store, parts) * self.bytes_per_row(parts))
        if announce:
            announce(num_bytes)
        require_room(uri, num_bytes, "the export")


def export_table(
    store: LogitStore,
    path: Path,
    form: str,
    *,
    selection: Selection | None = None,
    top_k: int | None = None,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the selected sequences as "parquet", "arrow" or "jsonl"; the number of sequences.

    Raises UnsupportedInputError where the disk has no room for them.
    """
    table = _Table(store, form, selection or Selection(), top_k)
    parts = table.selection.parts(store)
    table.require_room(str(path.parent), parts, announce)
    temporary = path.with_name(f".{path.name}.part")
    counter = _Counter(store, progress)
    try:
        with pa.OSFile(str(temporary), "wb") as file:
            table.write(file, map(counter.count, _ahead(table.content, parts)))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return counter.done


def export_files(
    store: LogitStore,
    uri: str,
    form: str,
    *,
    selection: Selection | None = None,
    top_k: int | None = None,
    file_bytes: int = FILE_BYTES,
    storage_options: Mapping[str, Any] | None = None,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> Exported:
    """As `export_table`, to files `part-00000-of-00012.parquet` and so on below a folder or URL.

    Each is put whole; those of the same export, repeated, take each other's place. Raises
    UnsupportedInputError where files of another export lie, or the disk has no room.
    """
    table = _Table(store, form, selection or Selection(), top_k)
    target = Objects(uri, storage_options)
    parts = table.selection.parts(store)
    groups = _groups(parts, file_bytes)
    _refuse_another(target, len(groups), form)
    table.require_room(target.uri, parts, announce)
    counter = _Counter(store, progress)

    def write(numbered: tuple[int, list[ShardPart]]) -> tuple[int, int]:
        number, group = numbered
        sink = pa.BufferOutputStream()
        counted = _Counter(store, None)
        table.write(sink, map(counted.count, map(table.content, group)))
        data = sink.getvalue().to_pybytes()
        target.put(f"part-{number:05d}-of-{len(groups):05d}.{form}", data)
        return counted.done, len(data)

    num_bytes = 0
    for num_sequences, size in _ahead(write, enumerate(groups)):
        counter.add(num_sequences)
        num_bytes += size
    return Exported(counter.done, len(groups), num_bytes)


class _Counter:
    """Sequences that were written, for the progress bar."""

    def __init__(self, store: LogitStore, progress: Progress | None) -> None:
        self.done = 0
        self._total = len(store)
        self._progress = progress

    def count(self, content: Content) -> Content:
        self.add(sum(1 if isinstance(one, LabeledSequence) else one.num_rows for one in content))
        return content

    def add(self, num_sequences: int) -> None:
        self.done += num_sequences
        if self._progress:
            self._progress("sequences", self.done, self._total)


def _ahead(make: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`make` of each item, in order, made by threads a few items ahead."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: list[Future[Any]] = []
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > THREADS:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _groups(parts: list[ShardPart], file_bytes: int) -> list[list[ShardPart]]:
    groups: list[list[ShardPart]] = [[]]
    size = 0
    for part in parts:
        if groups[-1] and size + part.entry.num_bytes > file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.entry.num_bytes
    return groups


def _row_groups(parts: Iterable[Content]) -> Iterator[list[pa.RecordBatch]]:
    """Record batches of several shards together: many small row groups cost more than their labels."""
    group: list[pa.RecordBatch] = []
    for batch in itertools.chain.from_iterable(parts):
        assert isinstance(batch, pa.RecordBatch)
        group.append(batch)
        if sum(one.nbytes for one in group) >= ROW_GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _refuse_another(target: Objects, num_files: int, form: str) -> None:
    found = [match for name in target.list() if (match := _PART_NAME.fullmatch(name)) is not None]
    others = [match[0] for match in found if int(match[1]) != num_files or match[2] != form]
    if others:
        raise UnsupportedInputError(
            f"{target.uri} holds files of another export, such as {others[0]}, where this one has "
            f"{num_files:,} of {form}: readers would take both; remove them, or export to another place"
        )


def _writer(file: pa.NativeFile, schema: pa.Schema, form: str) -> Any:
    if form == "arrow":
        return pa.ipc.new_file(file, schema)
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        compression_level=1,
        # Dictionaries of labels cost most of the time and make the file larger: few values repeat.
        use_dictionary=["finish_reason"],  # type: ignore[arg-type]
        use_byte_stream_split=list(_PLANES),  # type: ignore[arg-type]
        write_statistics=False,
    )
