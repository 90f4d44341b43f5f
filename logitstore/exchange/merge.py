"""Stores of one teacher as one: sequences are coded anew, with one codebook set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from logitstore.errors import InvalidLabelsError, StoreChangedError
from logitstore.exchange.importing import begun_store, check_no_others, unit_id_of, units_of
from logitstore.index.deletions import DeletedRecords
from logitstore.manifest.fields import MIXED, OPTIONAL_COLUMNS, InputInfo, Manifest, Retokenized, TeacherInfo
from logitstore.manifest.reading import teacher_identity
from logitstore.manifest.turns import turns_settings
from logitstore.objects.addresses import is_local_uri, normalise_uri, one_spelling
from logitstore.objects.room import SELECT_LESS, require_room
from logitstore.records import LabeledSequence, Reject
from logitstore.rows.selection import Selection, measure_of
from logitstore.rows.temperature import cut_labels, cut_sequences
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import copy_tokenizer
from logitstore.tools.carried_deletions import carry_deletions, deleted_in, warn_of_deleted

Progress = Callable[[str, int, int], None]


def merge_stores(
    sources: Sequence[LogitStore],
    uri: str,
    *,
    selection: Selection | None = None,
    top_k: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> LogitStore:
    """A store of the selected sequences of all sources, in their order; goes on where it was interrupted.

    Rejects come along as far as their record ids are selected. What one source deleted is left out of the
    others too, with a StoreWarning. `top_k` keeps only so many entries of a row,
    the mass of the others joins its tail. Raises StoreChangedError for stores of different
    teachers or label shapes and for a target begun with another selection or other sources,
    InvalidLabelsError for a sequence that two of them hold, UnsupportedInputError where a local disk has no
    room.
    """
    if one_spelling(uri, storage_options) in [source.objects.one_spelling for source in sources]:
        raise StoreChangedError(f"{uri} is one of the stores to merge; give a new place with --out")
    manifest = merged_manifest(sources)
    selection = selection or Selection()
    manifest = dataclasses.replace(manifest, labels=cut_labels(manifest.labels, top_k))
    begun = begun_store(uri, manifest, storage_options)
    require_room_anew("the merge", uri, begun, sources, selection, manifest.labels.top_k, SELECT_LESS)
    deleted = deleted_in(sources)
    if len(sources) > 1:
        warn_of_deleted(_refuse_shared(sources, selection, deleted), uri)
    target = LogitStore.create(uri, manifest, storage_options=storage_options)
    carry_deletions(sources, target)
    for source in sources:
        copy_tokenizer(source.objects, target.objects)
    codebooks = next((found for source in sources if (found := source.codebooks()) is not None), None)
    if codebooks is not None:
        target.set_codebooks(codebooks)
    committed, names = target.committed_units(), set[str]()
    rejects = [reject for source in sources for reject in source.rejects() if reject.record_id not in deleted]
    rejects = selection.kept_rejects(rejects)
    num_rows = sum(int(source.shards().column("num_rows").sum()) for source in sources)
    done_rows = 0
    sequences = _distinct(sources, selection, deleted, top_k)
    for unit_index, unit in enumerate(units_of(sequences)):
        names.add(_commit(target, unit_index, unit, rejects if unit_index == 0 else [], committed))
        done_rows += sum(sequence.rows.num_rows for sequence in unit)
        if progress:
            progress("rows", done_rows, num_rows)
    if not names and rejects:
        names.add(_commit(target, 0, [], rejects, committed))
    check_no_others(target, committed - names)
    target.compact()
    return target


def require_room_anew(
    what: str,
    uri: str,
    begun: LogitStore | None,
    sources: Sequence[LogitStore],
    selection: Selection,
    top_k: int,
    less: str = "",
) -> None:
    """Raise UnsupportedInputError where a local disk has no room for what is still to be written.

    Labels are coded anew, with one set of codebooks, at about the size that they have. `less` is as in
    `require_room`.
    """
    if not is_local_uri(normalise_uri(uri)):
        return
    needed = -int(begun.shards().column("num_bytes").sum()) if begun is not None else 0
    for source in sources:
        shards = source.shards()
        measure = measure_of(source.manifest.labels)
        total, size = (int(shards.column(name).sum()) for name in (measure, "num_bytes"))
        selected = selection.count_about(source, selection.parts(source), measure)
        share = min(1.0, top_k / source.manifest.labels.top_k)
        needed += int(size * share * selected / max(1, total))
    require_room(normalise_uri(uri), max(0, needed), what, less)


def merged_manifest(sources: Sequence[LogitStore]) -> Manifest:
    """The first store's head for all of them, with the largest K, "mixed" where modes or positions differ.

    Raises StoreChangedError.
    """
    _refuse_unlike(sources)
    first = sources[0].manifest
    inputs = [source.manifest.input for source in sources]
    features = tuple(dict.fromkeys(name for source in sources for name in source.manifest.features))
    mixed = {
        name: MIXED
        for name in ("mode", "positions")
        if len({getattr(source.manifest.labels, name) for source in sources}) > 1
    }
    same_input = all(info == inputs[0] for info in inputs)
    return dataclasses.replace(
        first,
        teacher=_merged_teacher(sources),
        labels=dataclasses.replace(
            first.labels,
            top_k=max(source.manifest.labels.top_k for source in sources),
            **mixed,
            extra_columns=tuple(name for name in OPTIONAL_COLUMNS if name in features),
        ),
        features=features if not mixed or MIXED in features else (*features, MIXED),
        input=inputs[0] if same_input else InputInfo(" + ".join(info.uri for info in inputs), "import", {}),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        codebooks=None,
        config=turns_settings(source.manifest for source in sources),
        retokenized=_merged_origin(sources),
    )


def _refuse_unlike(sources: Sequence[LogitStore]) -> None:
    """Raises StoreChangedError for stores whose rows would not be of one kind."""
    first = sources[0].manifest
    for source in sources[1:]:
        other = source.manifest
        if teacher_identity(other) != teacher_identity(first):
            raise StoreChangedError(
                f"{source.uri} was labeled by {_teacher_in_words(other)} and {sources[0].uri} by "
                f"{_teacher_in_words(first)}, or their tokenizers differ; only stores of one teacher, in one "
                "precision, can be merged"
            )
        if _origin_rule(other) != _origin_rule(first):
            raise StoreChangedError(
                f"{source.uri} and {sources[0].uri} were not mapped to their tokenizer in the same way: one "
                "is retokenized and the other is not, or only one has merged spans; retokenize both alike"
            )
        for name in ("temperatures", "value_kind", "support"):
            here, there = getattr(first.labels, name), getattr(other.labels, name)
            if here != there:
                raise StoreChangedError(
                    f"{source.uri} has {name} {there}, {sources[0].uri} has {here}; stores to be merged must "
                    "agree in it"
                )


def _merged_teacher(sources: Sequence[LogitStore]) -> TeacherInfo:
    """The one teacher, by all the engines and captures that ran it."""
    teachers = [source.manifest.teacher for source in sources]
    runs = {
        name: " + ".join(dict.fromkeys(getattr(one, name) for one in teachers))
        for name in ("engine", "engine_version", "capture")
    }
    return dataclasses.replace(teachers[0], **runs)


def _merged_origin(sources: Sequence[LogitStore]) -> Retokenized | None:
    """Whence retokenized labels come, of all sources; None where they are of the teacher's own tokenizer."""
    origins = [source.manifest.retokenized for source in sources]
    if origins[0] is None:
        return None
    digests = [digest for origin in origins if origin is not None for digest in origin.source_digests]
    return dataclasses.replace(origins[0], source_digests=tuple(dict.fromkeys(digests)))


def _teacher_in_words(manifest: Manifest) -> str:
    teacher = manifest.teacher
    quantised = f", {teacher.quantization}" if teacher.quantization else ""
    return f"{teacher.model} ({teacher.fingerprint:.16}, {teacher.dtype}{quantised})"


def _commit(
    target: LogitStore,
    unit_index: int,
    unit: list[LabeledSequence],
    rejects: list[Reject],
    committed: set[str],
) -> str:
    unit_id = unit_id_of("merged", unit_index, unit)
    if unit_id not in committed:
        target.commit_unit(unit_id, unit_index, unit, rejects, seconds=0.0, worker="merge")
    return unit_id


def _distinct(
    sources: Sequence[LogitStore], selection: Selection, deleted: DeletedRecords, top_k: int | None
) -> Iterator[LabeledSequence]:
    seen = _Seen()
    for source in sources:
        chosen = selection.sequences(source)
        for sequence in cut_sequences(chosen, source.manifest.labels, top_k):
            if sequence.record_id not in deleted:
                seen.add(sequence.record_id, sequence.sample_index, source.uri)
                yield sequence


def _refuse_shared(sources: Sequence[LogitStore], selection: Selection, deleted: DeletedRecords) -> int:
    """Raise InvalidLabelsError for a sequence that is in two stores, before anything is written.

    Returns how many there are of records that another store deleted.
    """
    seen, num_deleted = _Seen(), 0
    for source in sources:
        for record_id, sample_index in selection.names(source):
            if record_id in deleted:
                num_deleted += 1
            else:
                seen.add(record_id, sample_index, source.uri)
    return num_deleted


class _Seen:
    """The sequences so far, each of which may come once."""

    def __init__(self) -> None:
        self._stores: dict[tuple[str, int], str] = {}

    def add(self, record_id: str, sample_index: int, uri: str) -> None:
        """Raises InvalidLabelsError."""
        key = (record_id, sample_index)
        if key in self._stores:
            raise InvalidLabelsError(
                f"record {record_id!r:.120} (sample {sample_index}) is in {self._stores[key]} and in {uri}; "
                "give stores of different records, or exclude it with --where"
            )
        self._stores[key] = uri


def _origin_rule(manifest: Manifest) -> tuple[object, ...]:
    origin = manifest.retokenized
    return (origin is None, origin and origin.source_tokenizer, origin and origin.merged_spans)
