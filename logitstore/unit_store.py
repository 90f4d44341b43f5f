"""The units of a store, one by one: written and committed, and their shards opened."""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import Sequence
from typing import BinaryIO

from logitstore.committed_store import CommittedStore
from logitstore.errors import CorruptShardError, InvalidLabelsError, ObjectNotFoundError, StoreChangedError
from logitstore.index.changes.committing import commit
from logitstore.index.commits import CommitRecord, commit_name, shard_name, shard_place
from logitstore.manifest.fields import Manifest, ShardEntry
from logitstore.objects.opening import Objects
from logitstore.records import LabeledSequence, Reject
from logitstore.shard.reader import ShardReader
from logitstore.shard.schema import MAX_BLOCK_ENTRIES, MAX_SHARD_BYTES
from logitstore.shard.writer import ShardStats, write_shard

MAX_WHOLE_BYTES = 256 * 2**20
MAX_ROUNDS_PER_COMMIT = 10
NO_SHARD = ShardStats(num_sequences=0, num_rows=0, num_tokens=0, num_bytes=0, checksum="")


class UnitStore(CommittedStore):
    """Writes and reads the shards of a store's units."""

    def __init__(self, objects: Objects, manifest: Manifest, *, refresh: bool = True) -> None:
        self.max_block_entries = MAX_BLOCK_ENTRIES
        """Rows times K of a block that this process decodes at once; the format's limit unless lowered."""
        super().__init__(objects, manifest, refresh=refresh)

    def commit_unit(
        self,
        unit_id: str,
        unit_index: int,
        sequences: Sequence[LabeledSequence],
        rejects: Sequence[Reject] = (),
        *,
        seconds: float,
        worker: str,
    ) -> tuple[ShardEntry, bool]:
        """Write a unit's shard and make it visible, unless another writer was first.

        Returns the entry that counts and whether it is this call's. Raises InvalidLabelsError for
        labels that break the format, StoreChangedError for a unit whose place holds another, of another
        plan, ObjectStoreError if the outcome is unknown: then call again.
        """
        commit_name(unit_id)  # both refuse before anything is written
        self._units.check_place(unit_index, unit_id)
        for _ in range(MAX_ROUNDS_PER_COMMIT):
            self._codebooks.look_again()
            deleted = self.deleted_records
            kept = [one for one in sequences if one.record_id not in deleted]
            record = self.write_attempt(unit_id, unit_index, kept, rejects, seconds, worker)
            outcome = commit(self.objects, self._units, record)
            if outcome is None:
                continue
            if not self._shows_deleted(outcome[0], sequences):
                return outcome
            self.uncommit([outcome[0].name])
        raise StoreChangedError(
            f"{self.uri}: unit {unit_id} was un-committed {MAX_ROUNDS_PER_COMMIT} times while it was being "
            "committed; un-commit units while no job labels them"
        )

    def _shows_deleted(self, entry: ShardEntry, sequences: Sequence[LabeledSequence]) -> bool:
        """Whether the shard that counts for a unit of these sequences holds a deleted one that no tombstone
        names: readers skip it, and its bytes would stay.

        The index was read after the unit's record was put. A deletion that was not in it yet looks once more
        after it is, and so finds the record: one of the two sees the other.
        """
        deleted = self.deleted_records
        place = shard_place(entry.name)
        if place is None or not any(one.record_id in deleted for one in sequences):
            return False
        record = CommitRecord(place.attempt, self._manifest_hash, entry)
        return self._units.find_deleted([record])[place.attempt] is not None

    def write_attempt(
        self,
        unit_id: str,
        unit_index: int,
        sequences: Sequence[LabeledSequence],
        rejects: Sequence[Reject],
        seconds: float,
        worker: str,
    ) -> CommitRecord:
        """Put a shard under a name of its own; the record that would commit it, which counts for nothing
        yet."""
        attempt = secrets.token_hex(8)
        name, stats = "", NO_SHARD
        if sequences:
            name = shard_name(unit_index, unit_id, attempt)
            buffer = io.BytesIO()
            stats = write_shard(buffer, sequences, self._manifest.labels, self.codebooks())
            if stats.num_bytes > MAX_SHARD_BYTES:
                raise InvalidLabelsError(
                    f"unit {unit_id} makes a shard of {stats.num_bytes:,} bytes, and a shard has at most "
                    f"{MAX_SHARD_BYTES:,}; use smaller units"
                )
            self.objects.put(name, buffer.getvalue())
        entry = ShardEntry(
            unit_id=unit_id,
            unit_index=unit_index,
            name=name,
            num_sequences=stats.num_sequences,
            num_rows=stats.num_rows,
            num_tokens=stats.num_tokens,
            num_bytes=stats.num_bytes,
            checksum=stats.checksum,
            num_rejects=len(rejects),
            seconds=seconds,
            worker=worker,
            committed_sec=time.time(),
        )
        return CommitRecord(attempt, self._manifest_hash, entry, tuple(rejects))

    def open_shard(self, entry: ShardEntry, *, whole: bool = False, deleted: bool = False) -> ShardReader:
        """A reader of one shard, fetching what it needs, or the whole object in one request.

        Read whole when all of a shard is wanted from S3; the file's own checksum is then the caller's
        to compare (`verify` does), since blocks carry theirs. Deleted sequences are skipped, unless
        `deleted`.
        """
        if not entry.name:
            raise ValueError(f"unit {entry.unit_id} has no shard: every record of it was rejected")
        # The reader asks for whole ranges itself; reading ahead would only fetch what it skips.
        file = self.open_whole(entry) if whole else self._open(entry, 512)
        return self.reader_of(file, entry, deleted=deleted)

    def reader_of(self, file: BinaryIO, entry: ShardEntry, *, deleted: bool = False) -> ShardReader:
        """A reader of the file of an entry's shard that the caller has opened."""
        return ShardReader(
            file,
            self._manifest.labels,
            self.codebooks(),
            max_block_entries=self.max_block_entries,
            deleted=None if deleted else self.deleted_places(entry),
        )

    def open_whole(self, entry: ShardEntry) -> BinaryIO:
        """All of a shard: in memory, fetched by one request, up to MAX_WHOLE_BYTES; else read in parts.

        Raises CorruptShardError for an entry beyond the size that a shard may have.
        """
        if entry.num_bytes > MAX_SHARD_BYTES:
            raise CorruptShardError(
                f"{entry.name} has {entry.num_bytes:,} bytes, and a shard at most {MAX_SHARD_BYTES:,}; it "
                "was not written by this software, or is damaged"
            )
        if entry.num_bytes > MAX_WHOLE_BYTES:
            buffer_bytes = MAX_WHOLE_BYTES // 16
            return self._open(entry, buffer_bytes)
        try:
            return io.BytesIO(self.objects.get(entry.name, max_bytes=entry.num_bytes))
        except ObjectNotFoundError:
            raise gone_shard(self.uri, entry) from None

    def _open(self, entry: ShardEntry, buffer_bytes: int) -> BinaryIO:
        try:
            return self.objects.open(entry.name, num_bytes=entry.num_bytes, buffer_bytes=buffer_bytes)
        except ObjectNotFoundError:
            raise gone_shard(self.uri, entry) from None


def gone_shard(uri: str, entry: ShardEntry) -> ObjectNotFoundError:
    """Of a shard that is not there any more where the store was opened before."""
    return ObjectNotFoundError(
        f"{uri}: the shard {entry.name} of unit {entry.unit_id} is gone; run `penumbra store verify`, which "
        "lists all that are and how to go on. A purge, or labels made anew, removes shards that others read: "
        "then open the store, or start the training, again"
    )
