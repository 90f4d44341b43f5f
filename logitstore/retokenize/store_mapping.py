"""A store's labels in another tokenizer's tokens: unit by unit, going on where it was interrupted."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from logitstore.codec.codebook_training import train_codebooks
from logitstore.errors import UnsupportedInputError
from logitstore.exchange.importing import CODEBOOK_USES, begun_store, check_no_others
from logitstore.exchange.merge import require_room_anew
from logitstore.job_objects import RETOKENIZED_NAME
from logitstore.manifest import strict_json
from logitstore.manifest.fields import RETOKENIZED, Manifest, Retokenized, ShardEntry
from logitstore.manifest.turns import turns_settings
from logitstore.records import LabeledSequence, Reject
from logitstore.retokenize.boundaries import UnwritableTextError, Writer, Writing
from logitstore.retokenize.mapping import Kept, RowMap
from logitstore.retokenize.report import Report, report_name, sum_reports
from logitstore.retokenize.tokenization import NO_ID, Tokenization, equal_ids
from logitstore.rows.selection import Selection
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import files_in, put_tokenizer, stored_tokenizer
from logitstore.tools.carried_deletions import carry_deletions

Progress = Callable[[str, int, int], None]


def retokenize_store(
    source: LogitStore,
    uri: str,
    *,
    teacher: Tokenization,
    student: Tokenization,
    pairs: Mapping[str, str] | None = None,
    merge_spans: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[LogitStore, Report]:
    """A store of the same labels for students of the `student` tokenizer, and what is left of them.

    `pairs` are special tokens that are equal though their texts differ, the teacher's to the student's.
    Units that the target has are not read again. Raises UnsupportedInputError for a tokenizer that is not
    the store's, StoreExistsError for a target of other labels, StoreChangedError for one begun with other
    pairs.
    """
    source.need_rows("a mapping to another tokenizer")
    _check_teacher(source, teacher)
    _check_spelling(teacher, student)
    # A tokenizer may have more ids than the model has logits: the others are in no row.
    width = max(teacher.vocab_size, source.manifest.labels.vocab_size)
    teacher = dataclasses.replace(teacher, vocab_size=width)
    equal_V = equal_ids(teacher, student, pairs or {})
    manifest = _manifest(source, teacher, student, dict(pairs or {}), merge_spans)
    files = _tokenizer_files(Path(student.path))
    kept = stored_tokenizer(source.objects)
    begun = begun_store(uri, manifest, storage_options)
    top_k = min(manifest.labels.top_k, source.manifest.labels.top_k)
    require_room_anew("the mapping", uri, begun, [source], Selection(), top_k)
    target = LogitStore.create(uri, manifest, storage_options=storage_options)
    carry_deletions([source], target)
    licence = "" if kept is None else kept.licence  # the teacher's, from which the labels still are
    put_tokenizer(target.objects, files, licence)
    job = _Job(
        target,
        Writer(teacher, student, equal_V),
        RowMap(equal_V, manifest.labels, source.manifest.labels.num_outcomes, merge_spans),
        hashlib.blake2b(equal_V.tobytes(), digest_size=16).hexdigest(),
    )
    num_equal = int((equal_V != NO_ID).sum())
    committed = target.committed_units()
    names = job.map_units(source, committed, progress)
    check_no_others(target, committed - names)
    target.compact()
    report = dataclasses.replace(sum_reports(target, names), num_equal_ids=num_equal)
    target.objects.put(RETOKENIZED_NAME, strict_json.encode(report))
    return target, report


@dataclass(frozen=True)
class _Job:
    """What the units have in common."""

    target: LogitStore
    writer: Writer
    row_map: RowMap
    map_digest: str

    def unit_id(self, entry: ShardEntry) -> str:
        """A name that holds what the unit is made from: its source's bytes and the map of ids."""
        made_from = f"{entry.unit_id} {entry.checksum} {self.map_digest}"
        return f"retokenized-{hashlib.blake2b(made_from.encode(), digest_size=8).hexdigest()}"

    def map_units(self, source: LogitStore, committed: set[str], progress: Progress | None) -> set[str]:
        """The names of all units; those that are committed are not read."""
        names = set[str]()
        entries, rejects = list(source.shards()), source.rejects()
        for done, entry in enumerate(entries):
            if progress:
                progress("units", done, len(entries))
            unit_id = self.unit_id(entry)
            names.add(unit_id)
            if unit_id not in committed:
                self.map_unit(source, entry, unit_id, rejects if done == 0 else [])
        if progress:
            progress("units", len(entries), len(entries))
        return names

    def map_unit(self, source: LogitStore, entry: ShardEntry, unit_id: str, rejects: list[Reject]) -> None:
        sequences: list[LabeledSequence] = []
        report, found = Report(), list[Reject]()
        if entry.name:
            with source.open_shard(entry, whole=True) as reader:
                sequences, found, report = self._map(list(reader.iter_sequences()), entry)
        if sequences and self.target.codebooks() is None:
            self._train_codebooks(sequences, source)
        self.target.objects.put(report_name(unit_id), strict_json.encode(report))
        self.target.commit_unit(
            unit_id, entry.unit_index, sequences, [*rejects, *found], seconds=0.0, worker="retokenize"
        )

    def _map(
        self, sequences: list[LabeledSequence], entry: ShardEntry
    ) -> tuple[list[LabeledSequence], list[Reject], Report]:
        mapped: list[LabeledSequence] = []
        rejects: list[Reject] = []
        kept, unequal = Kept(), Counter[str]()
        written = zip(sequences, self.writer.write(sequences), self._student_prompts(sequences), strict=True)
        for place, (sequence, writing, prompt) in enumerate(written, start=1):
            if isinstance(writing, UnwritableTextError):
                rejects.append(_reject(entry, place, sequence, writing))
            elif isinstance(prompt, UnwritableTextError):
                rejects.append(_reject(entry, place, sequence, prompt))
            else:
                unequal.update(self.writer.unequal(sequence))
                one, of_one = self.row_map.sequence(sequence, writing)
                ids = None if prompt is None else prompt.token_ids_S
                mapped.append(dataclasses.replace(one, student_prompt_ids=ids))
                kept += of_one
                continue
            kept += Kept(num_rows=int(sequence.loss_mask_N.sum()))
        report = Report(
            num_sequences=len(mapped),
            num_rejects=len(rejects),
            unequal_tokens=dict(unequal),
            **{item.name: getattr(kept, item.name) for item in dataclasses.fields(kept)},
        )
        return mapped, rejects, report

    def _student_prompts(
        self, sequences: list[LabeledSequence]
    ) -> list[Writing | UnwritableTextError | None]:
        """Prompts of the student's own, written as the teacher's are; None where there is none."""
        own = [
            dataclasses.replace(
                sequence,
                token_ids_T=sequence.student_prompt_ids,
                prompt_length=len(sequence.student_prompt_ids),
            )
            for sequence in sequences
            if sequence.student_prompt_ids is not None
        ]
        written = iter(self.writer.write(own)) if own else iter(())
        return [None if one.student_prompt_ids is None else next(written) for one in sequences]

    def _train_codebooks(self, sequences: list[LabeledSequence], source: LogitStore) -> None:
        num_rows = int(source.shards().column("num_rows").sum())
        rows = (sequence.rows for sequence in sequences)
        books = train_codebooks(rows, self.row_map.labels, expected_rows=CODEBOOK_USES * num_rows)
        self.target.set_codebooks(books)


def _tokenizer_files(path: Path) -> dict[str, bytes]:
    """Those of a folder, or of a tokenizer's file; beside one of another name may lie another's."""
    if path.is_dir() or path.name == "tokenizer.json":
        return files_in(path if path.is_dir() else path.parent)
    return {"tokenizer.json": path.read_bytes()}


def _reject(entry: ShardEntry, place: int, sequence: LabeledSequence, error: UnwritableTextError) -> Reject:
    return Reject(entry.name, place, sequence.record_id, str(error), error.kind)


def _check_teacher(source: LogitStore, teacher: Tokenization) -> None:
    manifest = source.manifest
    if manifest.tokenizer.fingerprint and teacher.info.fingerprint != manifest.tokenizer.fingerprint:
        raise UnsupportedInputError(
            f"the tokenizer given as the teacher's has the fingerprint {teacher.info.fingerprint[:23]}..., "
            f"{source.uri} was labeled with {manifest.tokenizer.fingerprint[:23]}...: its ids mean other "
            "tokens; name the teacher's own with --teacher-tokenizer"
        )
    if manifest.retokenized is not None and manifest.retokenized.merged_spans:
        raise UnsupportedInputError(
            f"{source.uri} has entries of merged spans, which are not the teacher's own; retokenize the "
            "store that the teacher labeled"
        )


def _check_spelling(teacher: Tokenization, student: Tokenization) -> None:
    if teacher.word_marks != student.word_marks:
        one, other = (teacher, student) if teacher.word_marks else (student, teacher)
        raise UnsupportedInputError(
            f"the tokenizer at {one.path!r} is of the kind of {one.word_marks}, whose tokens do not say "
            f"where the text has spaces, and that at {other.path!r} is of another: they stand for no equal "
            "bytes; a teacher and a student of the same kind are needed"
        )


def _manifest(
    source: LogitStore,
    teacher: Tokenization,
    student: Tokenization,
    pairs: dict[str, str],
    merge_spans: bool,
) -> Manifest:
    manifest = source.manifest
    top_k = manifest.labels.top_k + merge_spans
    return dataclasses.replace(
        manifest,
        tokenizer=student.info,
        labels=dataclasses.replace(
            manifest.labels,
            vocab_size=student.vocab_size,
            top_k=min(top_k, student.vocab_size),
            value_kind="gap_f16" if merge_spans else manifest.labels.value_kind,
            teacher_vocab_size=manifest.labels.num_outcomes,
        ),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        codebooks=None,
        features=tuple(dict.fromkeys([*manifest.features, RETOKENIZED])),
        config={
            **turns_settings([manifest]),
            "retokenize": {"tokenizer": student.path, "tokens": pairs},
        },
        retokenized=Retokenized((source.digest,), teacher.info, merge_spans),
    )
