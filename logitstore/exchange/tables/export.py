"""Writing tables: one file, or several at any address, decoded and written in threads.

Decoding, and what Parquet does, release the interpreter's lock.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from logitstore.common.whole_file import DEAD_AFTER_SEC, check_replaceable, replacing
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.tables.ahead import made_ahead
from logitstore.exchange.tables.arrays import (
    BATCH_NUMBERS,
    TEXT_NUMBERS,
    bounded_groups,
    record_batch,
)
from logitstore.exchange.tables.columns import table_schema
from logitstore.exchange.tables.json_lines import head_line, json_lines
from logitstore.manifest.fields import Manifest
from logitstore.objects.opening import TEMPORARY_PREFIX, Objects
from logitstore.objects.room import SELECT_LESS, require_room
from logitstore.rows.selection import Selection, ShardPart, measure_of
from logitstore.rows.temperature import cut_labels, truncate
from logitstore.shard.assembling import BlockSequences
from logitstore.store import LogitStore

Progress = Callable[[str, int, int], None]
Announce = Callable[[int], None]
"""Called before anything is written with the bytes that it will take, about."""
ROW_GROUP_BYTES = 32 * 2**20
"""Bytes of arrays that make a row group of Parquet."""
FILE_BYTES = 64 * 2**20
"""Labels, as the store holds them, that one of several files takes; Parquet makes about twice of them."""
TOGETHER_BYTES = 2**20
"""Bytes of neighbouring small shards that one thread reads, so that their batches are not small."""
SAMPLE_SEQUENCES = 8
"""So many of the first sequences are written to nowhere, to know what all will take."""
_PLANES = tuple(
    f"{name}.list.element.list.element" for name in ("top_ids", "top_logits", "logsumexp", "log_tail_mass")
)
"""Columns that Parquet writes byte by byte: half the size, and less to compress."""
_PART_NAME = re.compile(r"part-\d{5}-of-(\d{5})\.(parquet|arrow|jsonl)")
_UNFINISHED_NAME = re.compile(TEMPORARY_PREFIX + r"\d+-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Piece:
    """What is written at once."""

    content: Any
    """Lines of JSON as bytes, or a record batch."""
    num_sequences: int


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

    def blocks(self, part: ShardPart) -> Iterator[BlockSequences]:
        for block in self.selection.blocks_of_part(self.store, part):
            if self.top_k is None:
                yield block
            else:
                yield replace(block, rows=truncate(block.rows, self.store.manifest.labels, self.top_k))

    def write(self, file: pa.NativeFile, pieces: Iterable[Piece]) -> None:
        if self.form == "jsonl":
            file.write(head_line(self.manifest))
            for piece in pieces:
                file.write(piece.content)
            return
        schema = self.schema
        with _writer(file, schema, self.form) as writer:
            for group in _row_groups(pieces):
                table = pa.Table.from_batches(group, schema)
                # Parquet makes one row group of them as they are.
                writer.write_table(table.combine_chunks() if self.form == "arrow" else table)

    def pieces(self, parts: Iterable[ShardPart]) -> Iterator[Piece]:
        """What `write` takes of some shards, of bounded size whatever the shards'."""
        return self.pieces_of(itertools.chain.from_iterable(map(self.blocks, parts)))

    def pieces_of(self, blocks: Iterable[BlockSequences]) -> Iterator[Piece]:
        is_text = self.form == "jsonl"
        make, at_once = (json_lines, TEXT_NUMBERS) if is_text else (record_batch, BATCH_NUMBERS)
        for some in bounded_groups(blocks, at_once):
            yield Piece(make(some, self.schema), sum(map(len, some)))

    def require_room(self, uri: str, parts: list[ShardPart], announce: Announce | None) -> None:
        """Tell what all will take. Raises UnsupportedInputError where a local disk has no room for it."""
        num_bytes = self.bytes_about(parts)
        if announce:
            announce(num_bytes)
        require_room(uri, num_bytes, "the export", SELECT_LESS)

    def bytes_about(self, parts: list[ShardPart]) -> int:
        """What the selected sequences take, by the first of them."""
        measure = measure_of(self.store.manifest.labels)
        sample: list[BlockSequences] = []
        for block in (block for part in parts for block in self.blocks(part)):
            sample.append(block.slice(0, SAMPLE_SEQUENCES - sum(map(len, sample))))
            if sum(map(len, sample)) == SAMPLE_SEQUENCES:
                break
        sink = pa.BufferOutputStream()
        self.write(sink, self.pieces_of(sample))
        sampled = sum(int(getattr(block.plain, measure).sum()) for block in sample)
        count = self.selection.count_about(self.store, parts, measure)
        return count * sink.getvalue().size // max(1, sampled)


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

    Raises UnsupportedInputError where the disk has no room for them, or no file can take the path's place.
    """
    check_replaceable(path)
    table = _Table(store, form, selection or Selection(), top_k)
    parts = table.selection.parts(store)
    table.require_room(str(path.parent), parts, announce)
    counter = _Counter(store, progress)
    with (
        replacing(path) as part,
        pa.OSFile(os.fsencode(part), "wb") as file,
        made_ahead(table.pieces, _groups(parts, TOGETHER_BYTES)) as pieces,
    ):
        table.write(file, map(counter.count, pieces))
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
    _remove_unfinished(target)
    table.require_room(target.uri, parts, announce)
    counter = _Counter(store, progress)

    def write(numbered: tuple[int, list[ShardPart]]) -> Iterator[tuple[int, int]]:
        number, group = numbered
        counted = _Counter(store, None)
        with target.writing(f"part-{number:05d}-of-{len(groups):05d}.{form}") as file:
            table.write(pa.PythonFile(file, "w"), map(counted.count, table.pieces(group)))
            num_bytes = file.tell()
        yield counted.done, num_bytes

    num_bytes = 0
    with made_ahead(write, enumerate(groups)) as written:
        for num_sequences, size in written:
            counter.add(num_sequences)
            num_bytes += size
    return Exported(counter.done, len(groups), num_bytes)


class _Counter:
    """Sequences that were written, for the progress bar."""

    def __init__(self, store: LogitStore, progress: Progress | None) -> None:
        self.done = 0
        self._total = len(store)
        self._progress = progress

    def count(self, piece: Piece) -> Piece:
        self.add(piece.num_sequences)
        return piece

    def add(self, num_sequences: int) -> None:
        self.done += num_sequences
        if self._progress:
            self._progress("sequences", self.done, self._total)


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


def _row_groups(pieces: Iterable[Piece]) -> Iterator[list[pa.RecordBatch]]:
    """Record batches of several shards together: many small row groups cost more than their labels."""
    group: list[pa.RecordBatch] = []
    size = 0
    for piece in pieces:
        group.append(piece.content)
        size += piece.content.nbytes
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
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


def _remove_unfinished(target: Objects) -> None:
    """What killed exports left in this very folder, each as large as a file of theirs."""
    oldest_live = time.time() - DEAD_AFTER_SEC
    target.delete_temporary(
        info
        for info in target.list_temporary()
        if _UNFINISHED_NAME.fullmatch(info.name) and info.modified_sec < oldest_live
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
