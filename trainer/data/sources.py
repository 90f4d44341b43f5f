"""The stores behind a dataset: what takes part of each, and how its shards are opened."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from logitstore.common.store_warning import StoreWarning
from logitstore.errors import ObjectNotFoundError
from logitstore.index.deletions import DeletedRecords
from logitstore.inputs.parts import parent_id
from logitstore.manifest.fields import Manifest, ShardEntry
from logitstore.rows.conditions import Block
from logitstore.rows.selection import Selection
from logitstore.rows.where import parse_selection, select_ids
from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore
from logitstore.tools.carried_deletions import deleted_in
from logitstore.unit_store import gone_shard
from trainer.data.cache.shard_cache import ShardCache
from trainer.data.outlines import CUT, Outline
from trainer.errors import CacheFullError, SettingError

NOTHING_DELETED = DeletedRecords(frozenset(), has_parts=False)
MAX_WEIGHT = 10_000
"""Readings of each shard that an epoch is planned with, at most."""
OUTLINE_THREADS = 16
"""Shards whose outlines are read side by side."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Which records are kept from training. The same record is held out in every store and every run."""

    fraction: float
    side: Literal["train", "held_out"] = "train"
    """Which part to read."""

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(f"held-out fraction {self.fraction} must lie in [0, 1)")

    def keeps(self, hash_S: np.ndarray) -> np.ndarray:
        """bool [S], whether the records of these `record_hash`es, uint64, are on this side."""
        is_held_out_S = hash_S < np.uint64(math.ceil(self.fraction * 2**64))
        return is_held_out_S == (self.side == "held_out")


def record_hashes(record_ids: Iterable[str]) -> np.ndarray:
    """uint64, `record_hash` of each."""
    return np.fromiter(map(record_hash, record_ids), dtype=np.uint64)


def record_hash(record_id: str) -> int:
    """In [0, 2^64), by a record's id, so all its samples stay together, and by its parent's id where it is a
    part of one, so that no turn of a conversation is held out of the others. The least are held out."""
    name = parent_id(record_id).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, person=b"held-out").digest(), "big")


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """A store to read, when a URI alone does not say enough."""

    uri: str
    weight: float = 1.0
    """How often its sequences occur in an epoch: 2 is twice, 0.5 another half every epoch (unshuffled, always
    the first half). An evaluation has each once, whatever its weight is, and none of a store of weight 0."""
    storage_options: Mapping[str, Any] | None = None
    where: str | None = None
    """Which of its sequences take part, as `penumbra store cat --where` has it; None takes all."""
    ids: str | Path | None = None
    """A file of record ids, one a line: only these take part."""
    without_ids: str | Path | None = None
    """A file of record ids that take no part."""
    is_text: bool = False
    """Without a teacher (`trainer.run.reading.texts`): `held_out` keeps nothing of it back, and `top_k` is
    not its."""

    def selection(self) -> Selection:
        """All three together. Raises UnsupportedInputError."""
        selection = parse_selection(self.where)
        if self.ids is not None:
            selection &= select_ids(self.ids)
        if self.without_ids is not None:
            selection &= select_ids(self.without_ids, without=True)
        return selection

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= MAX_WEIGHT:
            raise ValueError(
                f"weight {self.weight:g} of {self.uri} must lie in 0..{MAX_WEIGHT:,}, how often an epoch has "
                "its sequences; for more, train more epochs, or give other stores less"
            )


class Source:
    """One store as a dataset reads it: fixed at construction, picklable, with no open files."""

    def __init__(
        self,
        uri: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
        cache: ShardCache | None = None,
        held_out: HeldOut | None = None,
        selection: Selection | None = None,
        store: LogitStore | None = None,
        deleted: DeletedRecords = NOTHING_DELETED,
    ) -> None:
        """`store` is the one at `uri`, where it is open; `deleted` are records that others read beside it
        have taken down."""
        store = store or LogitStore.open(uri, storage_options=storage_options)
        self.uri = store.uri
        self.manifest: Manifest = store.manifest
        self.digest = store.digest
        self.entries: list[ShardEntry] = [entry for entry in store.shards() if entry.num_sequences]
        self.objects = store.objects
        self._codebooks = store.codebooks()
        self._deleted = {
            entry.name: places for entry in self.entries if len(places := store.deleted_places(entry))
        }
        """Places of sequences that were taken down, by shard."""
        self._cache = cache
        self._held_out, self.selection = held_out, selection or Selection()
        self._deleted_elsewhere = deleted if deleted.digests - store.deletions.records else NOTHING_DELETED
        self._outlines: list[Outline] | None = None
        """By shard; None until somebody asks, as reading them visits every shard."""
        self._takes_all = held_out is None or (held_out.fraction == 0 and held_out.side == "train")
        self._takes_all &= self.selection.takes_all
        if not self._takes_all:
            self.outlines()

    def outlines(self) -> list[Outline]:
        """What takes part of each shard; read at the first call, and no labels are fetched."""
        if self._outlines is None:
            with ThreadPoolExecutor(OUTLINE_THREADS, thread_name_prefix="logit-outline") as pool:
                self._outlines = list(pool.map(self._outline, range(len(self.entries))))
            self.selection.unmet.warn(self.uri)
            self._warn_of_deleted(sum(outline.num_deleted_elsewhere for outline in self._outlines))
        return self._outlines

    def _warn_of_deleted(self, num_sequences: int) -> None:
        """Ids of another store may mean other records: who knows that they do not must take these down."""
        if num_sequences:
            warnings.warn(
                f"{self.uri}: {num_sequences:,} sequences that take part have record ids that were deleted "
                "from another of the stores; where they are the same records, delete them here too, or name "
                "them in without_ids",
                StoreWarning,
                stacklevel=2,
            )

    @property
    def lengths(self) -> list[int]:
        """Sequences of each shard that take part."""
        if self._takes_all:
            return [entry.num_sequences for entry in self.entries]
        return [len(outline.place_S) for outline in self.outlines()]

    def only(self, keep: Sequence[np.ndarray]) -> Source:
        """The same store, of which fewer sequences take part: by shard, a bool [S] for those of now."""
        narrowed = copy.copy(self)
        outlines = [outline.only(keep_S) for outline, keep_S in zip(self.outlines(), keep, strict=True)]
        vars(narrowed).update(_outlines=outlines, _takes_all=False)
        return narrowed

    @contextmanager
    def open(self, shard: int) -> Iterator[ShardReader]:
        entry = self.entries[shard]
        with ExitStack() as stack:
            if self._cache is not None and not self._cache.is_full:
                with suppress(CacheFullError):
                    file = stack.enter_context(self._cache.open(self.objects, entry))
                    yield self._reader(file, entry)
                    return
            yield stack.enter_context(self._open_remotely(entry))

    @contextmanager
    def _open_remotely(self, entry: ShardEntry) -> Iterator[ShardReader]:
        """Without the cache: only what is read of the shard is fetched."""
        # The reader asks for whole ranges itself; reading ahead would only fetch what it skips.
        with self.objects.open(entry.name, num_bytes=entry.num_bytes, buffer_bytes=512) as file:
            yield self._reader(file, entry)

    def _reader(self, file: BinaryIO, entry: ShardEntry) -> ShardReader:
        deleted = self._deleted.get(entry.name)
        return ShardReader(file, self.manifest.labels, self._codebooks, deleted=deleted)

    @contextmanager
    def naming_gone(self, shard: int) -> Iterator[None]:
        """Say what may have become of the shard where it is not there any more."""
        try:
            yield
        except ObjectNotFoundError as error:
            raise gone_shard(self.uri, self.entries[shard]) from error

    def fetch(self, shard: int) -> None:
        """Have the shard in the cache, if there is one."""
        if self._cache is not None and not self._cache.is_full:
            with suppress(CacheFullError):  # said by the cache; `open` reads from the store then
                self._cache.fetch(self.objects, self.entries[shard])

    def kept(self, shard: int) -> np.ndarray:
        """int, places within the shard of the sequences that take part, ascending."""
        if self._takes_all:
            return np.arange(self.entries[shard].num_sequences)
        return self.outlines()[shard].place_S

    def _outline(self, shard: int) -> Outline:
        entry = self.entries[shard]
        if not self.selection.takes_unit(entry):
            return Outline.empty()
        parts: list[tuple[np.ndarray, ...]] = [tuple(Outline.empty().columns().values())]
        first = num_deleted = 0
        with self.naming_gone(shard), self._open_remotely(entry) as reader:
            for block in range(reader.num_blocks):
                columns = Block(reader, block)
                plain = columns.plain
                keep_S, hash_S = self._keeps(columns, entry)
                kept_names = compress(plain.record_id, keep_S)
                num_deleted += sum(name in self._deleted_elsewhere for name in kept_names)
                num_labels_S = np.minimum(plain.num_rows, plain.num_tokens - plain.label_start)
                block_S = np.full(len(keep_S), block, dtype=np.int32)
                shift_S = reader.student_shifts(block)  # lengths are those that the student sees
                columns = (
                    (plain.num_tokens + shift_S).astype(np.int32),
                    (plain.label_start + shift_S).astype(np.int32),
                    np.maximum(num_labels_S, 0),
                    block_S,
                    np.array([reason == CUT for reason in plain.finish_reason], dtype=np.int32),
                )
                places_S = np.flatnonzero(keep_S).astype(np.int32) + first
                parts.append((places_S, *(column[keep_S] for column in columns), hash_S))
                first += len(keep_S)
        columns_S = map(np.concatenate, zip(*parts, strict=True))
        return Outline(*columns_S, num_deleted_elsewhere=num_deleted)

    def _keeps(self, block: Block, entry: ShardEntry) -> tuple[np.ndarray, np.ndarray]:
        """bool [S], which sequences of a block take part; and the `record_hash` of those that do."""
        keep_S = np.ones(len(block.plain.record_id), dtype=bool)
        if not self.selection.takes_all:
            keep_S &= self.selection.kept(block, entry)
        hash_S = record_hashes(compress(block.plain.record_id, keep_S))
        if self._held_out is not None:
            is_kept_S = self._held_out.keeps(hash_S)
            keep_S[keep_S] = is_kept_S
            hash_S = hash_S[is_kept_S]
        return keep_S, hash_S


def store_specs(stores: str | Path | StoreSpec | Sequence[str | Path | StoreSpec]) -> list[StoreSpec]:
    """One or several stores, each with what is to be read of it."""
    given = [stores] if isinstance(stores, (str, Path, StoreSpec)) else stores
    return [one if isinstance(one, StoreSpec) else StoreSpec(str(one)) for one in given]


def open_sources(
    specs: Sequence[StoreSpec], cache: ShardCache | None, held_out: HeldOut | None
) -> list[Source]:
    """The stores in their order. Raises UnsupportedInputError for a selection before any store is opened."""
    selections = [spec.selection() for spec in specs]
    stores = [LogitStore.open(spec.uri, storage_options=spec.storage_options) for spec in specs]
    deleted = deleted_in(stores)
    return [
        Source(
            spec.uri,
            storage_options=spec.storage_options,
            cache=cache,
            held_out=None if spec.is_text else held_out,
            selection=selection,
            store=store,
            deleted=deleted,
        )
        for spec, selection, store in zip(specs, selections, stores, strict=True)
    ]


def warn_of_same_part(specs: Sequence[StoreSpec]) -> None:
    """For stores that are read unshuffled, whose epochs all begin with the first sequences."""
    for spec in specs:
        if spec.weight % 1:
            warnings.warn(
                f"the weight {spec.weight:g} of {spec.uri} takes the same first sequences in every epoch, "
                "since shuffle is false (in a configuration data.shuffle); shuffled, each takes other ones",
                StoreWarning,
                stacklevel=3,
            )


def each_once(sources: Sequence[Source], weights: Sequence[float], most: int | None) -> list[Source]:
    """The stores without those of weight 0, and of the others so many sequences at most: those whose records
    have the least hashes, whatever the order of reading is. None takes all."""
    lengths = [sum(source.lengths) if weight else 0 for source, weight in zip(sources, weights, strict=True)]
    if (most is None or most >= sum(lengths)) and all(weights):
        return list(sources)
    columns = [[outline.hash_S for outline in source.outlines()] for source in sources]
    hash_S = np.concatenate([np.empty(0, np.uint64), *(one_S for shards in columns for one_S in shards)])
    counts_S = np.repeat(np.array(weights) > 0, [sum(map(len, shards)) for shards in columns])
    order_S = np.lexsort((hash_S, ~counts_S))[: min(sum(lengths), sum(lengths) if most is None else most)]
    keep_S = np.zeros(len(hash_S), dtype=bool)
    keep_S[order_S] = True
    ends = np.cumsum([len(one_S) for shards in columns for one_S in shards])
    parts = iter(np.split(keep_S, ends[:-1]))
    return [
        source.only([next(parts) for _ in shards]) for source, shards in zip(sources, columns, strict=True)
    ]


def combined_digest(sources: Sequence[Source], weights: Sequence[float], held_out: HeldOut | None) -> str:
    """Names everything about the stores that the order depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for source, weight in zip(sources, weights, strict=True):
        digest.update(f"{source.digest}|{weight!r}\n".encode())
        for text in source.selection.texts:
            digest.update(f"{text}\n".encode())
    if held_out is not None:
        digest.update(f"{held_out.fraction!r}|{held_out.side}".encode())
    return digest.hexdigest()


def check_top_k(sources: Sequence[Source], specs: Sequence[StoreSpec], top_k: int | None) -> None:
    """Raises SettingError for a number of entries that the stores do not have, or not as the top ones."""
    if top_k is None:
        return
    for source, spec in zip(sources, specs, strict=True):
        labels = source.manifest.labels
        if top_k < labels.top_k and labels.support == "given":
            raise SettingError(
                f"top_k={top_k} asks for the first entries of {source.uri}, whose rows are at ids "
                "that were given: the first ones are no top-K; leave data.top_k out"
            )
        if not spec.is_text and not 1 <= top_k <= labels.top_k:
            raise SettingError(
                f"top_k={top_k} must lie in 1..{labels.top_k}, the entries that {source.uri} stores of "
                "a row; lower it, or leave it out to read all"
            )
