"""Deleted records in shards that only a commit record names.

A tombstone names places of the shards that its deletion saw. A writer that knew nothing of it may put its
record after that, and die before it takes the unit back. Until compaction names what such a shard holds of
deleted records, readers find it themselves, by the records' ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from logitstore.codec.codebooks import CodebookSet
from logitstore.errors import CorruptShardError, ObjectNotFoundError, UnsupportedFormatError
from logitstore.index.commits import CommitRecord
from logitstore.index.deletions import DeletedRecords, DeletedSequences, Deletions
from logitstore.index.ids.shard_ids import plain_blocks
from logitstore.manifest.fields import LabelSpec
from logitstore.objects.opening import Objects

THREADS = 16


@dataclass(frozen=True)
class TailDeletions:
    """What reading the ids of such shards needs."""

    objects: Objects
    labels: LabelSpec
    codebooks: Callable[[], CodebookSet | None]
    has_parts: bool
    """Whether records of the store are parts of those of the input."""

    def find(
        self, records: Sequence[CommitRecord], deletions: Deletions
    ) -> dict[str, DeletedSequences | None]:
        """By attempt, the sequences of deleted records whose places `deletions` does not name.

        No labels are read. A shard that cannot be read hands out nothing, so None stands for it too.
        """
        codebooks = self.codebooks()

        def find_in(record: CommitRecord) -> DeletedSequences | None:
            try:
                return self._find_in(record, deletions, codebooks)
            except (ObjectNotFoundError, CorruptShardError, UnsupportedFormatError):
                return None

        shards = [record for record in records if record.shard.name]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(find_in, shards))
        return {record.attempt: one for record, one in zip(shards, found, strict=True)}

    def _find_in(
        self, record: CommitRecord, deletions: Deletions, codebooks: CodebookSet | None
    ) -> DeletedSequences | None:
        deleted = DeletedRecords(deletions.records, self.has_parts)
        named = set(deletions.places(record.attempt).tolist())
        places: list[int] = []
        num_rows = num_tokens = first = 0
        entry = record.shard
        for plain in plain_blocks(self.objects, entry, self.labels, codebooks):
            for at, record_id in enumerate(plain.record_id):
                if record_id in deleted and first + at not in named:
                    places.append(first + at)
                    num_rows += int(plain.num_rows[at])
                    num_tokens += int(plain.num_tokens[at])
            first += len(plain.record_id)
        if not places:
            return None
        return DeletedSequences(entry.unit_id, record.attempt, tuple(places), num_rows, num_tokens)
