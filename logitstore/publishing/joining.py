"""Neighbouring shards as one: published stores have few and large files, whatever units a job had."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from logitstore.errors import CorruptShardError
from logitstore.index import segments as index_segments
from logitstore.index.commits import shard_name
from logitstore.manifest.fields import ShardEntry
from logitstore.shard.reader import ShardReader
from logitstore.shard.schema import MAX_BLOCK_SEQUENCES, MAX_BLOCK_TOKENS, MAX_SHARD_BYTES
from logitstore.shard.writer import write_shard
from logitstore.store import LogitStore

UNIT_PREFIX = "published-"
SHARD_BYTES = 32 * 2**20
"""What a published shard aims at: readers mix sequences of several shards, so they must not be few."""
MAX_SHARDS = 8192
"""Below the 10,000 files that a folder of the Hub may have; where shards of SHARD_BYTES would be more, they
are larger."""


@dataclass(frozen=True)
class Joined:
    """Shards of the source that become one, and what that will be called."""

    entries: tuple[ShardEntry, ...]
    unit_index: int
    key: str
    """16 hexadecimal digits over the parts and what is deleted of them: the same parts, the same name."""

    @property
    def unit_id(self) -> str:
        return f"{UNIT_PREFIX}{self.unit_index:06d}-{self.key}"

    @property
    def name(self) -> str:
        return shard_name(self.unit_index, self.unit_id, self.key)


def plan_shards(source: LogitStore, shard_bytes: int = SHARD_BYTES) -> list[Joined]:
    """Which shards are joined: neighbours, up to `shard_bytes`; a larger one stays alone."""
    entries = [entry for entry in source.shards() if entry.num_sequences]
    target = max(shard_bytes, sum(entry.num_bytes for entry in entries) * 2 // MAX_SHARDS)
    groups = enumerate(_groups(entries, min(target, MAX_SHARD_BYTES // 2)))
    return [Joined(tuple(group), index, _key(source, group)) for index, group in groups]


def joined_shard(source: LogitStore, joined: Joined) -> tuple[bytes, ShardEntry]:
    """The bytes of the new shard and its entry, without deleted sequences.

    Blocks are taken over as they are, unless one holds deleted sequences or the parts were coded with unlike
    codebooks. Raises CorruptShardError for a part that is not what its entry says.
    """
    parts = [_checked(source, entry) for entry in joined.entries]
    data = (
        None if any(len(source.deleted_places(entry)) for entry in joined.entries) else _concatenated(parts)
    )
    if data is None:
        buffer = io.BytesIO()
        sequences = (
            sequence
            for part, entry in zip(parts, joined.entries, strict=True)
            for sequence in source.reader_of(io.BytesIO(part), entry).iter_sequences()
        )
        write_shard(buffer, sequences, source.manifest.labels, source.codebooks())
        data = buffer.getvalue()
    entry = ShardEntry(
        unit_id=joined.unit_id,
        unit_index=joined.unit_index,
        name=joined.name,
        num_sequences=sum(entry.num_sequences for entry in joined.entries),
        num_rows=sum(entry.num_rows for entry in joined.entries),
        num_tokens=sum(entry.num_tokens for entry in joined.entries),
        num_bytes=len(data),
        checksum=index_segments.checksum(data),
        num_rejects=0,
        seconds=0.0,
        worker="publish",
    )
    return data, entry


def record_ids_in(shard: bytes, source: LogitStore) -> list[str]:
    """Record ids of a shard made by `joined_shard`; no labels are decoded."""
    with ShardReader(io.BytesIO(shard), source.manifest.labels, source.codebooks()) as reader:
        return [one for at in range(reader.num_blocks) for one in reader.plain_columns(at).record_id]


def _groups(entries: Sequence[ShardEntry], target_bytes: int) -> Iterator[list[ShardEntry]]:
    limits = (target_bytes, MAX_BLOCK_SEQUENCES, MAX_BLOCK_TOKENS)
    group: list[ShardEntry] = []
    sizes = (0, 0, 0)
    for entry in entries:
        its = (entry.num_bytes, entry.num_sequences, entry.num_tokens)
        together = tuple(map(sum, zip(sizes, its, strict=True)))
        if group and any(size > limit for size, limit in zip(together, limits, strict=True)):
            yield group
            group, together = [], its
        group.append(entry)
        sizes = together
    if group:
        yield group


def _key(source: LogitStore, entries: Sequence[ShardEntry]) -> str:
    hasher = hashlib.blake2b(digest_size=8)
    for entry in entries:
        hasher.update(f"{entry.checksum} {source.deleted_places(entry).tolist()}\n".encode())
    return hasher.hexdigest()


def _checked(source: LogitStore, entry: ShardEntry) -> bytes:
    data = source.objects.get(entry.name)  # not what the entry says, which may be anything
    if index_segments.checksum(data) != entry.checksum:
        raise CorruptShardError(
            f"{source.uri}: {entry.name} does not have the checksum of its entry; run `verify` on the "
            "source, then repeat"
        )
    return data


def _concatenated(parts: Sequence[bytes]) -> bytes | None:
    """One file with the record batches of all; None where their schemas, or codebooks, differ."""
    if len(parts) == 1:
        return parts[0]
    sink = pa.BufferOutputStream()
    try:
        readers = [pa.ipc.open_file(pa.BufferReader(part)) for part in parts]
        schema = readers[0].schema
        if not all(reader.schema.equals(schema, check_metadata=True) for reader in readers):
            return None
        with pa.ipc.new_file(sink, schema) as writer:
            for reader in readers:
                for index in range(reader.num_record_batches):
                    batch = reader.get_batch(index)
                    batch.validate(full=True)
                    writer.write_batch(batch)
    except pa.ArrowException as error:
        raise CorruptShardError(f"a shard is no Arrow file ({error}); run `verify` on the source") from error
    return sink.getvalue().to_pybytes()
