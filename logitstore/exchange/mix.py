"""Two teachers' labels of the same tokens as those of one: the weighted sum of their probabilities.

At T=1 the sum is exact (`mixed_rows`). Softened, a sum of probabilities is no sum of softened ones, so the
new store has T=1 only.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from logitstore.codec.codebook_training import train_codebooks
from logitstore.errors import InvalidLabelsError, UnsupportedInputError
from logitstore.exchange.importing import CODEBOOK_USES, begun_store, check_no_others
from logitstore.exchange.merge import require_room_anew
from logitstore.exchange.mixed_manifest import mixed_manifest
from logitstore.exchange.mixed_rows import mix_sequences
from logitstore.index.deletions import DeletedRecords
from logitstore.manifest.fields import Manifest, ShardEntry
from logitstore.records import LabeledSequence, Reject
from logitstore.rows.selection import Selection
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import copy_tokenizer
from logitstore.tools.carried_deletions import carry_deletions, deleted_in

Progress = Callable[[str, int, int], None]
MixedUnit = tuple[str, int, list[LabeledSequence], Counter[str]]
"""Name, unit index, sequences, and what is not mixed."""


@dataclass(frozen=True, slots=True)
class NotMixed:
    """What two stores have and their mixture has not."""

    num_masked: int
    """Rows that count in the first one's loss and not here, as the second has none there that counts."""
    num_other_segments: int
    """Sequences whose segments are others in the second store."""
    num_second_only: int
    """Sequences that the second store alone has, without those whose records the first has deleted."""
    num_deleted: int
    """Sequences of one store whose records the other has deleted; they are left out."""


def mix_stores(
    stores: tuple[LogitStore, LogitStore],
    uri: str,
    *,
    weights: tuple[float, float] = (0.5, 0.5),
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    report: Callable[[NotMixed], None] | None = None,
) -> LogitStore:
    """A store of the first one's sequences with the mixture's rows; goes on where it was interrupted.

    What is no sum comes from the first store, with its rejects; flags from both, and segments from the second
    where the first knows none. `report` is told at the end, also of what an earlier run made.

    Raises UnsupportedInputError for weights that are no distribution, StoreChangedError for stores of
    different tokenizers, InvalidLabelsError for a sequence that the second lacks or holds with other tokens,
    and for a row that counts in a loss and has no id that both know.
    """
    if not (min(weights) > 0 and abs(sum(weights) - 1) < 1e-6):
        raise UnsupportedInputError(f"weights {weights} must be above 0 and add up to 1; for example 0.5 0.5")
    for source in stores:
        source.need_rows("a mixture")
    manifest = mixed_manifest(stores, weights)
    begun = begun_store(uri, manifest, storage_options)
    if begun is not None:
        carry_deletions(stores, begun)
    require_room_anew("the mixture", uri, begun, stores[:1], Selection(), manifest.labels.top_k)
    committed = begun.committed_units() if begun is not None else set[str]()
    shards = stores[0].shards()
    made_from = f"{stores[1].digest} {weights!r}"
    named = {_name_of(f"{entry.checksum} {made_from}"): entry for entry in shards if entry.name}
    second = _SequencesByKey(stores[1])
    wanted = {k: v for k, v in named.items() if k not in committed}
    units = _mixed_units(stores, second, weights, manifest, wanted)
    first = list(islice(units, 1))  # before the store is made: stores that do not fit leave none
    target = LogitStore.create(uri, manifest, storage_options=storage_options)
    carry_deletions(stores, target)
    for source in stores:
        copy_tokenizer(source.objects, target.objects)
    alone = _name_of(made_from)  # a unit of rejects, where there is nothing to be mixed
    deleted = deleted_in(stores)
    rejects = {next(iter(named), alone): [one for one in stores[0].rejects() if one.record_id not in deleted]}
    num_rows = int(shards.column("num_rows").sum())
    counts = _commit_units(target, chain(first, units), rejects, num_rows, len(named), progress)
    if not named and rejects[alone] and alone not in committed:
        target.commit_unit(alone, 0, [], rejects[alone], seconds=0.0, worker="mix")
    if progress:
        progress("units", len(named), len(named))
    check_no_others(target, committed - named.keys() - {alone})
    target.compact()
    if report:
        done_before = {k: v for k, v in named.items() if k in committed}
        report(_not_mixed(stores, second, target, counts, done_before))
    return target


def _commit_units(
    target: LogitStore,
    units: Iterator[MixedUnit],
    rejects: Mapping[str, list[Reject]],
    num_rows: int,
    num_units: int,
    progress: Progress | None,
) -> Counter[str]:
    """What is not mixed of the units, which come behind those that the target has.

    `num_rows` and `num_units` are those of the whole mixture.
    """
    counts = Counter[str]()
    for done, (name, unit_index, mixed, counted) in enumerate(units, start=len(target.committed_units())):
        if progress:
            progress("units", done, num_units)
        if mixed and target.codebooks() is None:
            rows = (one.rows for one in mixed)
            labels = target.manifest.labels
            target.set_codebooks(train_codebooks(rows, labels, expected_rows=CODEBOOK_USES * num_rows))
        target.commit_unit(name, unit_index, mixed, rejects.get(name, []), seconds=0.0, worker="mix")
        counts += counted
    return counts


def _not_mixed(
    stores: tuple[LogitStore, LogitStore],
    second: _SequencesByKey,
    target: LogitStore,
    counts: Counter[str],
    done: Mapping[str, ShardEntry],
) -> NotMixed:
    """`counts` of the units that this run made, and the same of those that were `done` before."""
    deleted = deleted_in(stores)
    if done:
        made = {entry.unit_id: entry for entry in target.shards()}
        for name, entry in done.items():
            own, num_deleted = _living(stores[0], entry, deleted)
            counts["deleted"] += num_deleted
            for three in zip(own, _sequences(target, made[name]), second.of(own), strict=True):
                counts += _counted(*three)
    num_here, num_there = (int(store.shards().column("num_sequences").sum()) for store in stores)
    num_mixed = num_here - counts["deleted"]
    num_deleted_here = second.count_of(
        deleted
    )  # a sequence is in one of the two counts: who deleted has it not
    num_second_only = num_there - num_deleted_here - num_mixed
    num_deleted = counts["deleted"] + num_deleted_here
    return NotMixed(counts["masked"], counts["segments"], num_second_only, num_deleted)


def _name_of(parts: str) -> str:
    """Name of the unit that is made of these parts and of no others."""
    return f"mixed-{hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()}"


def _mixed_units(
    stores: tuple[LogitStore, LogitStore],
    second: _SequencesByKey,
    weights: tuple[float, float],
    manifest: Manifest,
    wanted: Mapping[str, ShardEntry],
) -> Iterator[MixedUnit]:
    """The mixture of each of the first store's shards."""
    deleted = deleted_in(stores)
    for name, entry in wanted.items():
        own, num_deleted = _living(stores[0], entry, deleted)
        mixed, counted = list[LabeledSequence](), Counter(deleted=num_deleted)
        for one, other in zip(own, second.of(own), strict=True):
            mixed.append(mix_sequences(one, other, weights, manifest))
            counted += _counted(one, mixed[-1], other)
        yield name, entry.unit_index, mixed, counted


def _living(
    store: LogitStore, entry: ShardEntry, deleted: DeletedRecords
) -> tuple[list[LabeledSequence], int]:
    """The sequences of a shard without those that the other store deleted, and the number of these."""
    own = _sequences(store, entry)
    left = [one for one in own if one.record_id not in deleted]
    return left, len(own) - len(left)


def _sequences(store: LogitStore, entry: ShardEntry) -> list[LabeledSequence]:
    if not entry.name:
        return []
    with store.open_shard(entry, whole=True) as reader:
        return list(reader.iter_sequences())


def _counted(one: LabeledSequence, mixed: LabeledSequence, other: LabeledSequence) -> Counter[str]:
    """Rows "masked" of one sequence, and whether its "segments" are others in the second store."""
    num_masked = int(one.loss_mask_N.sum()) - int(mixed.loss_mask_N.sum())
    return Counter(masked=num_masked, segments=int(_has_other_segments(one, other)))


def _has_other_segments(one: LabeledSequence, other: LabeledSequence) -> bool:
    if one.segments_T is None or other.segments_T is None:
        return False
    return not np.array_equal(one.segments_T, other.segments_T)


class _SequencesByKey:
    """The second store's sequences by record and sample, in whatever order it has them."""

    def __init__(self, store: LogitStore) -> None:
        self._store = store
        self._numbers = {key: number for number, key in enumerate(Selection().names(store))}

    def count_of(self, deleted: DeletedRecords) -> int:
        """Sequences whose records are among these."""
        return sum(record_id in deleted for record_id, _ in self._numbers)

    def of(self, sequences: Sequence[LabeledSequence]) -> list[LabeledSequence]:
        """The other labels of these tokens; each block that holds some is read once. Raises
        InvalidLabelsError."""
        others = self._store.lookup().read([self._number(one) for one in sequences])
        for one, other in zip(sequences, others, strict=True):
            if not np.array_equal(other.token_ids_T, one.token_ids_T):
                raise InvalidLabelsError(
                    f"{_name(one)} has other tokens in {self._store.uri}: let the second teacher score the "
                    'first one\'s text (labels.mode = "score", input.kind = "token_ids")'
                )
            _check_student_prompts(one, other, _name(one), self._store.uri)
        return others

    def _number(self, sequence: LabeledSequence) -> int:
        number = self._numbers.get((sequence.record_id, sequence.sample_index))
        if number is None:
            raise InvalidLabelsError(
                f"{_name(sequence)} is not in {self._store.uri}: only what both teachers labeled can be "
                "mixed; label it there, or merge a selection of the first store with --where"
            )
        return number


def _name(sequence: LabeledSequence) -> str:
    return f"record {sequence.record_id!r:.120} (sample {sequence.sample_index})"


def _check_student_prompts(one: LabeledSequence, other: LabeledSequence, name: str, uri: str) -> None:
    """The mixture has the first store's: a second one that has another, or alone has one, is not passed over.

    Raises InvalidLabelsError.
    """
    own, others = one.student_prompt_ids, other.student_prompt_ids
    if others is None or (own is not None and np.array_equal(own, others)):
        return
    if own is None:
        raise InvalidLabelsError(
            f"{name} has a prompt of the student's own in {uri} alone, and the mixture takes that of the "
            "first store: name the two stores the other way round"
        )
    raise InvalidLabelsError(
        f"{name} has another prompt of the student's own in {uri}: one student cannot see both; label it "
        "there with the first store's, or with none"
    )
