"""A logit store: a manifest, shards, and commit records that make the shards visible.

Any number of processes may write to and read from one store at once, on a local disk or on S3. Of the
writers of one unit exactly one wins; a reader sees whole shards or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex, overload

from logitstore.errors import ObjectNotFoundError, StoreExistsError, StoreNotFoundError, UnsupportedInputError
from logitstore.index.absence import refuse_lost_index, refuse_lost_manifest
from logitstore.index.changes.rebuild import RebuildResult, rebuild_index
from logitstore.index.commits import SHARDS_PREFIX
from logitstore.index.entries import ShardIndex
from logitstore.index.pointer import INDEX_NAME, IndexPointer, encode_pointer
from logitstore.lookup import KeptIds, Lookup
from logitstore.manifest.fields import Manifest
from logitstore.manifest.folders import refuse_file_name, refuse_in_store
from logitstore.manifest.reading import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    decode_manifest,
    encode_manifest,
    first_difference,
    identity,
)
from logitstore.objects.opening import Objects
from logitstore.records import LabeledSequence
from logitstore.unit_store import UnitStore


class LogitStore(UnitStore):
    """Made by `create` or `open`. Picklable: a copy opens the store anew in its process."""

    def __init__(self, objects: Objects, manifest: Manifest, *, refresh: bool = True) -> None:
        self._lookup: tuple[ShardIndex, Lookup] | None = None
        self._kept_ids = KeptIds()
        super().__init__(objects, manifest, refresh=refresh)

    @classmethod
    def create(
        cls,
        uri: str | os.PathLike[str],
        manifest: Manifest,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> LogitStore:
        """A new store, or the one already there if it has the same identity: a job resumed.

        Raises StoreExistsError if a store of another teacher, input or label shape lies there, or the place
        is within the folder of another; UnsuitablePlaceError where no store can be written,
        UnsupportedInputError for a name that is a file's.
        """
        objects = Objects(uri, storage_options)
        if not objects.exists(MANIFEST_NAME):
            objects.require_conditions()
            refuse_file_name(objects.uri)
            refuse_lost_manifest(objects)
            refuse_in_store(objects.uri, "the new store", is_store=True, storage_options=storage_options)
            if objects.put_if_absent(MANIFEST_NAME, encode_manifest(manifest)):
                return cls._begin(objects, manifest)
        existing = decode_manifest(objects.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES))
        if identity(existing) != identity(manifest):
            raise StoreExistsError(
                f"{objects.uri} already holds another store: {first_difference(existing, manifest)}; "
                "write to another place, or give the settings the store was made with"
            )
        return cls._begin(objects, existing)

    @classmethod
    def open(
        cls,
        uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        writing: bool = False,
    ) -> LogitStore:
        """An existing store. `writing` opens one that has shards and no committed unit yet, as a job may.

        Raises StoreNotFoundError, UnsupportedFormatError, CorruptManifestError, and IndexLostError for
        labels that nothing names.
        """
        objects = Objects(uri, storage_options)
        store = cls(objects, _read_manifest(objects))
        refuse_lost_index(objects, store._units, writing=writing)
        return store

    @classmethod
    def rebuild(
        cls,
        uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> tuple[LogitStore, RebuildResult]:
        """Write an index from the shards and what can be read of the old one, and open the store.

        Reads every shard and deletes nothing. Raises what `open` does but for the index, StoreChangedError
        if another process replaces the index meanwhile.
        """
        objects = Objects(uri, storage_options)
        store = cls(objects, _read_manifest(objects), refresh=False)
        store._codebooks.restore(objects.list(SHARDS_PREFIX))
        result = rebuild_index(objects, store._manifest, store.codebooks(), progress)
        store.refresh()
        return store, result

    @classmethod
    def _begin(cls, objects: Objects, manifest: Manifest) -> LogitStore:
        """The store, with an empty `index.json` unless it has one, so that its absence means its loss."""
        store = cls(objects, manifest)
        refuse_lost_index(objects, store._units, writing=True)
        if not store._units.has_index:
            objects.put_if_absent(INDEX_NAME, encode_pointer(IndexPointer(0, store._manifest_hash)))
            store.refresh()
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return (LogitStore, (self.objects, self._manifest))

    def __repr__(self) -> str:
        return f"LogitStore({self.uri!r}, {len(self.shards())} units)"

    @property
    def manifest(self) -> Manifest:
        """The head, with the hash of the codebook set if the store has one by now."""
        codebooks = self.codebooks()
        return dataclasses.replace(self._manifest, codebooks=codebooks.hash if codebooks else None)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over the identity and the committed shards; compaction leaves it alone."""
        hasher = hashlib.blake2b(identity(self._manifest), digest_size=16)
        self.shards().digest_into(hasher)
        return hasher.hexdigest()

    def need_rows(self, what: str) -> None:
        """Raises UnsupportedInputError where the store holds texts alone, which `what` cannot do without."""
        if self._manifest.labels.support == "none":
            raise UnsupportedInputError(
                f"{self.uri} holds texts alone and no label rows, which {what} needs; train on it with "
                "loss.alpha = 0, or write its texts: penumbra store export --to messages or prompt-completion"
            )

    def iter_sequences(self, top_k: int | None = None) -> Iterator[LabeledSequence]:
        """All sequences by unit, one shard in memory at a time; `top_k` reads only that many entries."""
        for entry in self.shards():
            if entry.name:
                with self.open_shard(entry) as reader:
                    yield from reader.iter_sequences(top_k=top_k)

    def __len__(self) -> int:
        """Sequences of the store."""
        return int(self.shards().column("num_sequences").sum())

    def __bool__(self) -> bool:
        return True  # a store without sequences is a store

    def __iter__(self) -> Iterator[LabeledSequence]:
        return self.iter_sequences()

    def __contains__(self, record_id: object) -> bool:
        """Whether the store has a sequence of this record. Raises TypeError for what is no record id."""
        if not isinstance(record_id, str):
            raise TypeError(f"{record_id!r:.80} is no record id; ask a store whether it has a record")
        return bool(self.find([record_id])[record_id])

    @overload
    def __getitem__(self, key: SupportsIndex | str | tuple[str, SupportsIndex]) -> LabeledSequence: ...
    @overload
    def __getitem__(self, key: slice | list[str]) -> list[LabeledSequence]: ...
    def __getitem__(
        self, key: SupportsIndex | str | tuple[str, SupportsIndex] | slice | list[str]
    ) -> LabeledSequence | list[LabeledSequence]:
        """`store[7]`, `store[-1]`, `store[10:20]`: by number in the store's order. `store["id"]`,
        `store["id", 3]`: a record's sequence, or one sample of it. `store[["a", "b"]]`: one of each record.

        Ids are looked up in the id indexes of the segments; those of shards that none covers are read once.
        Raises IndexError, KeyError, and TypeError for what is none of these.
        """
        lookup = self.lookup()
        if isinstance(key, slice):
            return lookup.read(range(*key.indices(len(lookup))))
        if isinstance(key, str):
            return lookup.one(key)
        if isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str):
            sample = _whole_number(key[1])
            if sample is not None:
                return lookup.one(key[0], sample)
        elif (number := _whole_number(key)) is not None:
            if not -len(lookup) <= number < len(lookup):
                raise IndexError(f"sequence {number} of {len(lookup)}: {self.uri} has no more")
            return lookup.read([number % len(lookup)])[0]
        elif isinstance(key, Iterable) and not isinstance(key, (tuple, Mapping)):
            names = list(key)
            if all(isinstance(name, str) for name in names):
                return lookup.one_of_each(names)
        raise TypeError(
            f"a store has nothing under {key!r:.80}; ask for a number, a slice of numbers, a record id, a "
            "pair of record id and sample, or a list of record ids"
        )

    def find(self, record_ids: Iterable[str]) -> dict[str, list[LabeledSequence]]:
        """All samples of each of these records; an empty list for one that the store does not have."""
        return self.lookup().find(record_ids)

    def lookup(self) -> Lookup:
        """Sequences by number and by id, as of the last `refresh`; kept until the store changes."""
        shards = self.shards()
        if self._lookup is None or self._lookup[0] is not shards:
            self._lookup = (shards, Lookup(self, self._kept_ids))
        return self._lookup[1]


def _whole_number(value: object) -> int | None:
    """An integer of Python or numpy as an int; None for any other value."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _read_manifest(objects: Objects) -> Manifest:
    try:
        data = objects.get(MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
    except ObjectNotFoundError as error:
        refuse_lost_manifest(objects)
        raise StoreNotFoundError(f"no store lies at {objects.uri}: {_why_none(objects)}") from error
    return decode_manifest(data)


def _why_none(objects: Objects) -> str:
    """Why no store is there, and what to do; an export of `label run --out` has its store beside it."""
    if not (objects.is_local and os.path.isfile(objects.uri)):
        return f"{MANIFEST_NAME} is not there; check the path, or label something into it first"
    beside, _ = os.path.splitext(objects.uri)
    if os.path.isfile(os.path.join(beside, MANIFEST_NAME)):
        return f"that is a file, and a store is a folder; give {beside}, the store beside it"
    return "that is a file, and a store is a folder; `penumbra store import` makes one of an export"
