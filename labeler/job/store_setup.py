"""The store of a job: made when the first teacher is known, given codebooks after its first units."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace

from labeler.config.loading import JobConfig, resolved
from labeler.errors import TeacherMismatchError
from labeler.job.status import utc_now
from labeler.job.teacher_files import leave_tokenizer
from labeler.patience import persistently
from labeler.planning.plan import PlanTotals
from labeler.planning.preflight import Prepared
from labeler.planning.provenance import digests_of, provenance_of
from labeler.records import TeacherDescription
from logitstore.codec.codebook_training import train_codebooks
from logitstore.errors import StoreError, StoreExistsError
from logitstore.job_objects import REJECTS_NAME
from logitstore.manifest.fields import (
    GIVEN_ENTRIES,
    RECORD_PARTS,
    SEGMENTS,
    STUDENT_PROMPTS,
    TEXTS_ONLY,
    InputInfo,
    LabelSpec,
    Manifest,
    ShardEntry,
)
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.records import Reject
from logitstore.store import LogitStore


@dataclass(slots=True)
class StoreSetup:
    """Makes, opens and tends the store."""

    job: JobConfig
    prepared: Prepared
    totals: PlanTotals
    note: Callable[[str], None]
    store: LogitStore | None = None
    _description: TeacherDescription | None = None
    _first_entries: list[ShardEntry] = field(default_factory=list)
    _training: threading.Thread | None = None
    _compacting: threading.Thread | None = None

    def open_existing(self) -> LogitStore | None:
        """The store if anything was labeled before."""
        if self.store is None and self.prepared.objects.exists(MANIFEST_NAME):
            output = self.job.output
            self.store = LogitStore.open(output.uri, storage_options=output.storage_options, writing=True)
        return self.store

    def take_description(self, description: TeacherDescription) -> bool:
        """Check a worker's teacher; the first one makes the store, or is checked against it.

        True for the first. Raises TeacherMismatchError.
        """
        if self._description is not None:
            if description != self._description:
                raise TeacherMismatchError(
                    f"its teacher is {description}, the other workers have {self._description}; all labels "
                    "of a store are made alike: use the same software on every node"
                )
            return False
        output, manifest = self.job.output, self._manifest(description)
        try:
            self.store = persistently(
                lambda: LogitStore.create(output.uri, manifest, storage_options=output.storage_options),
                output.retry_sec,
            )
            persistently(self._leave_tokenizer, output.retry_sec)
        except StoreExistsError as error:
            self.store = None
            remedy = "; teacher.head_dtype decides on the dtype" if "teacher.dtype" in str(error) else ""
            raise TeacherMismatchError(f"{error}{remedy}") from None
        self._description = description
        return True

    def _leave_tokenizer(self) -> None:
        leave_tokenizer(self.prepared.objects, self.job.teacher, self.job.input)

    def committed_one(self, entry: ShardEntry) -> None:
        """After `output.codebook_units` units with labels, train the store's codebooks in the background."""
        wanted = self.job.output.codebook_units if self.job.labels.rows else 0
        store = self.store
        if not wanted or self._training is not None or not entry.name or store is None:
            return
        self._first_entries.append(entry)
        if len(self._first_entries) < wanted:
            return
        self._training = threading.Thread(
            target=self._train_codebooks, args=(store,), name="codebooks", daemon=True
        )
        self._training.start()

    def compact_beside(self) -> None:
        """Compact the store's index, if it has one, while the job goes on, unless that is at work already."""
        store = self.store
        if store is not None and (self._compacting is None or not self._compacting.is_alive()):
            self._compacting = threading.Thread(
                target=_compact_or_leave, args=(store,), name="compact", daemon=True
            )
            self._compacting.start()

    def finish(self) -> None:
        """Wait for what goes on in the background, and compact the index for the last time."""
        for thread in (self._training, self._compacting):
            if thread is not None:
                thread.join()
        if self.store is not None:
            result = persistently(self.store.compact, self.job.output.retry_sec)
            if result.not_removed:
                self.note(f"garbage stays in the store until `verify --repair`: {result.not_removed}")
            if result.not_indexed:
                self.note(f"record ids are looked up in the shards: {result.not_indexed}")

    def write_rejects(self, planned: Iterable[Reject]) -> None:
        """All rejects, those of planning and of the engines, in one file for people."""
        store = self.open_existing()
        if store is not None:
            store.refresh()
        from_engines = store.rejects() if store is not None else []
        lines = [
            json.dumps(asdict(reject), ensure_ascii=False)
            for reject in itertools.chain(planned, from_engines)
        ]
        content = "".join(f"{line}\n" for line in lines)
        self.prepared.objects.put(REJECTS_NAME, content.encode("utf-8", "replace"))

    def _train_codebooks(self, store: LogitStore) -> None:
        try:
            if store.codebooks() is not None:
                return
            rows = (
                sequence.rows
                for entry in self._first_entries
                for sequence in store.open_shard(entry).iter_sequences()
            )
            store.set_codebooks(
                train_codebooks(rows, store.manifest.labels, expected_rows=max(self.totals.num_labels, 1))
            )
        except (StoreError, OSError) as error:
            self.note(f"no shared codebooks: {error}; shards keep their own, which costs some bytes")

    def _columns(self) -> tuple[str, ...]:
        """Optional columns of the shards: those that the store was begun with decide about segments."""
        columns = (STUDENT_PROMPTS,) if self.job.input.has_student_prompts else ()
        if not self.job.has_segments:
            return columns
        existing = self.open_existing()
        if existing is not None and SEGMENTS not in existing.manifest.features:
            self.note("the store was begun without segments, so its further labels have none either")
            return columns
        return (*columns, SEGMENTS)

    def _input_info(self) -> InputInfo:
        """As the store has it, if it was begun: that it is the same input, however its place is written now
        and however much of it is taken, the plan has found."""
        existing, info = self.open_existing(), self.prepared.input_info
        if existing is None:
            return info
        return replace(info, uri=existing.manifest.input.uri, limit=existing.manifest.input.limit)

    def _manifest(self, description: TeacherDescription) -> Manifest:
        config = resolved(self.job)
        for section in ("input", "output"):
            del config[section]["storage_options"]
        config["prompts_made_from"] = digests_of(provenance_of(self.job, self.prepared.tokenizer))
        labels = self.job.labels
        columns = self._columns()
        support = "given" if labels.given else "top" if labels.rows else "none"
        return Manifest(
            teacher=description.info,
            tokenizer=self.prepared.tokenizer.info,
            labels=LabelSpec(
                vocab_size=description.vocab_size,
                top_k=labels.top_k if labels.rows else 1,
                temperatures=description.exact_temperatures if labels.rows else (1.0,),
                value_kind=description.value_kind,
                mode=labels.mode,
                positions=self.job.positions,
                extra_columns=columns,
                support=support,
            ),
            features=(
                *columns,
                *([] if labels.rows else [TEXTS_ONLY]),
                *([GIVEN_ENTRIES] if labels.given else []),
                *([RECORD_PARTS] if self.prepared.input_info.parts else []),
            ),
            input=self._input_info(),
            created=utc_now(),
            config=config,
        )


def _compact_or_leave(store: LogitStore) -> None:
    # The next compaction takes up what this one leaves.
    with contextlib.suppress(StoreError, OSError):
        store.compact()
