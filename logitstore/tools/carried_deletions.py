"""Deletions go along into what is made of a store: what was taken down in one of several does not come back.

A merge, a mixture, a mapping or an import like a store leaves out what any of its sources deleted, though
another still has it, and its own tombstones say so: it is not labeled again there, and `verify --against`
does not miss it.
"""

from __future__ import annotations

import dataclasses
import secrets
import warnings
from collections.abc import Iterable, Iterator, Sequence

from logitstore.common.store_warning import StoreWarning
from logitstore.errors import StoreChangedError
from logitstore.index.deletions import DeletedRecords, Tombstone, write_tombstone
from logitstore.manifest.fields import RECORD_PARTS
from logitstore.manifest.reading import manifest_hash
from logitstore.records import LabeledSequence
from logitstore.store import LogitStore

MAX_SWAP_TRIES = 20


def deleted_in(stores: Iterable[LogitStore]) -> DeletedRecords:
    """Records that at least one of the stores has taken down."""
    stores = list(stores)
    digests = frozenset[str]().union(*(store.deletions.records for store in stores))
    return DeletedRecords(digests, any(RECORD_PARTS in store.manifest.features for store in stores))


def carry_deletions(sources: Sequence[LogitStore], target: LogitStore) -> None:
    """Have the target say what its sources deleted, before anything is committed there.

    Raises StoreChangedError where it was begun before a deletion, and so may hold what was taken down. What a
    version made that carried no deletions along cannot be told from that.
    """
    for _ in range(MAX_SWAP_TRIES):
        known = target.deletions.records
        new = _unknown(sources, known, manifest_hash(target.manifest))
        if not new:
            return
        if target.committed_units():
            count = len(deleted_in(sources).digests - known)
            raise StoreChangedError(
                f"{target.uri} does not say that {count:,} of the records were deleted that "
                f"{' and '.join(source.uri for source in sources)} no longer hand out: it was begun before "
                "that, or by an earlier version, which took no deletions along; write to a new store"
            )
        pointer, etag = target.index_pointer()
        infos = [write_tombstone(target.objects, one, secrets.token_hex(8)) for one in new]
        changed = dataclasses.replace(
            pointer, generation=pointer.generation + 1, deleted=(*pointer.deleted, *infos)
        )
        if target.replace_index(changed, etag):
            return
    raise StoreChangedError(
        f"{target.uri}: {MAX_SWAP_TRIES} attempts to replace the index lost to other processes; stop what "
        "works on the store, then repeat the command"
    )


def _unknown(sources: Sequence[LogitStore], known: frozenset[str], manifest: str) -> list[Tombstone]:
    """The sources' tombstones, with the records that are not `known`, each once."""
    found: list[Tombstone] = []
    for tombstone in (one for source in sources for one in source.deletions.tombstones):
        digests = [tombstone.records[at : at + 32] for at in range(0, len(tombstone.records), 32)]
        new = [digest for digest in digests if digest not in known]
        if new:
            known = known.union(new)
            found.append(dataclasses.replace(tombstone, manifest=manifest, records="".join(new), units=()))
    return found


class Living:
    """The sequences that were not deleted, and how many were left out of those that passed so far."""

    def __init__(self, sequences: Iterable[LabeledSequence], deleted: DeletedRecords) -> None:
        self._sequences, self._deleted = sequences, deleted
        self.num_left_out = 0

    def __iter__(self) -> Iterator[LabeledSequence]:
        for sequence in self._sequences:
            if sequence.record_id in self._deleted:
                self.num_left_out += 1
            else:
                yield sequence


def left_out(num_sequences: int, made: str) -> str:
    """A sentence of sequences that are not in what was `made`, as a store that it is made of deleted them."""
    are = "1 sequence is" if num_sequences == 1 else f"{num_sequences:,} sequences are"
    return (
        f"{are} left out of {made}: their records were deleted from a store that it is made of, and do not "
        "come back"
    )


def warn_of_deleted(num_sequences: int, made: str) -> None:
    """A StoreWarning of what is left out, if anything is."""
    if num_sequences:
        warnings.warn(left_out(num_sequences, made), StoreWarning, stacklevel=3)
