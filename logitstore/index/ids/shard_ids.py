"""What lies beside the labels of a shard, the ids of its records among it, read without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from logitstore.codec.codebooks import CodebookSet
from logitstore.manifest.fields import LabelSpec
from logitstore.objects.opening import Objects
from logitstore.shard.reader import ShardReader
from logitstore.shard.sequence_columns import PlainColumns


class NamedShard(Protocol):
    """An object of a known size: an entry of the index, or what a listing told."""

    @property
    def name(self) -> str: ...
    @property
    def num_bytes(self) -> int: ...


def plain_blocks(
    objects: Objects, shard: NamedShard, labels: LabelSpec, codebooks: CodebookSet | None
) -> Iterator[PlainColumns]:
    """Block by block. Raises ObjectNotFoundError, CorruptShardError, UnsupportedFormatError."""
    # The reader asks for whole ranges itself; reading ahead would only fetch what it skips.
    file = objects.open(shard.name, num_bytes=shard.num_bytes, buffer_bytes=512)
    with ShardReader(file, labels, codebooks) as reader:
        for block in range(reader.num_blocks):
            yield reader.plain_columns(block)
