"""The worker: one teacher in one Ray actor, units in, committed shards out.

The class is plain Python, made an actor by `pool.py`, so that tests drive it without Ray. Of its threads
one alone touches the engine; the others read units, filter, write and commit, so that the engine goes on
while the last unit is being written. Labels never leave the process: only a commit's row does.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import ray

from labeler.config import JobConfig
from labeler.cores import Placement
from labeler.filters import filter_responses
from labeler.messages import EngineDiedError, Heartbeat, UnitResult
from labeler.patience import persistently
from labeler.plan import read_unit
from labeler.scheduler import Lease
from labeler.teacher import (
    PromptError,
    Teacher,
    TeacherDescription,
    TeacherDiedError,
    TokenizedPrompt,
    build_teacher,
)
from labeler.units import PlannedRecord
from logitstore.manifest import ShardEntry
from logitstore.records import LabeledSequence, Reject
from logitstore.store import LogitStore

MAX_BUFFERED_BYTES = 1 << 30
Result = TypeVar("Result")


@dataclass(slots=True)
class _Labeled:
    sequences: list[LabeledSequence]
    rejects: list[Reject]
    num_bytes: int


class Worker:
    """Labels leases with one teacher. Its methods may be called from several threads at once."""

    def __init__(self, job: JobConfig, name: str, special_ids: frozenset[int]) -> None:
        self._job = job
        self._name = name
        self._special_ids = special_ids
        self._teacher: Teacher | None = None
        self._store: LogitStore | None = None
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._leaving = threading.Event()
        self._state = threading.Condition()
        self._in_engine: int | None = None
        self._death: EngineDiedError | None = None
        self._progress = 0
        self._buffered_bytes = 0
        self._num_sequences = 0
        self._num_tokens = 0

    def place(self) -> Placement:
        """Where this actor came to be."""
        return Placement(
            node_id=ray.get_runtime_context().get_node_id(),
            host=socket.gethostname(),
            process_id=os.getpid(),
            cores=tuple(sorted(os.sched_getaffinity(0))),
        )

    def start(self, cores: str | None) -> TeacherDescription:
        """Load the teacher, bound to `cores`. Takes as long as the model takes to load."""

        def load() -> TeacherDescription:
            self._teacher = build_teacher(self._job.teacher, self._job.labels, cores=cores)
            return self._teacher.describe()

        return self._engine_thread.submit(load).result()

    def label_unit(self, lease: Lease) -> UnitResult:
        """Label a unit and commit it; on a trial only label. Raises EngineDiedError: replace this actor."""
        started = time.perf_counter()
        store = self._open_store()
        planned = self._persistently(lambda: read_unit(store.objects, lease.unit))
        prompts = _prompts_of(planned, lease)
        read_sec = time.perf_counter() - started
        self._wait_for_room()
        labeled = self._engine_thread.submit(self._run_engine, lease, planned, prompts).result()
        if labeled is None:
            return UnitResult(lease.lease_id, "gave_back")
        engine_sec, labeled = labeled
        try:
            if lease.trial is not None:
                return UnitResult(lease.lease_id, "passed_trial", engine_sec=engine_sec)
            result = self._finish(store, lease, planned, labeled, engine_sec, read_sec)
        finally:
            with self._state:
                self._buffered_bytes -= labeled.num_bytes
                self._progress += 1
                self._state.notify_all()
        return result

    def heartbeat(self) -> Heartbeat:
        with self._state:
            return Heartbeat(
                progress=self._progress,
                in_engine=self._in_engine,
                buffered_bytes=self._buffered_bytes,
                num_sequences=self._num_sequences,
                num_tokens=self._num_tokens,
            )

    def leave(self) -> None:
        """Begin no further unit; the one in the engine is finished, the others are given back."""
        self._leaving.set()

    def close(self) -> None:
        """Free the engine."""
        self._leaving.set()
        if self._teacher is not None:
            self._engine_thread.submit(self._teacher.close).result()

    def _run_engine(
        self, lease: Lease, planned: list[PlannedRecord], prompts: list[TokenizedPrompt]
    ) -> tuple[float, _Labeled] | None:
        """Runs in the engine's thread. None if this worker is about to leave."""
        if self._leaving.is_set():
            return None
        assert self._teacher is not None, "start() comes first"
        started = time.perf_counter()
        if self._death is not None:
            raise self._death
        with self._state:
            self._in_engine = lease.lease_id
        try:
            labeled = self._collect(self._teacher.label(prompts), planned)
        except TeacherDiedError as error:
            self._death = EngineDiedError(f"{type(error).__name__}: {error}", lease.lease_id)
            raise self._death from error
        with self._state:
            self._in_engine = None
            self._progress += 1
        return time.perf_counter() - started, labeled

    def _collect(
        self, results: Iterable[LabeledSequence | PromptError], planned: list[PlannedRecord]
    ) -> _Labeled:
        by_id = {record.prompt.record_id: record for record in planned}
        labeled = _Labeled([], [], 0)
        for result in results:
            if isinstance(result, PromptError):
                record = by_id[result.record_id]
                labeled.rejects.append(
                    Reject(record.file, record.line, result.record_id, result.reason, result.kind)
                )
                continue
            labeled.sequences.append(result)
            num_bytes = result.rows.logits_NK.nbytes + result.rows.token_ids_NK.nbytes
            labeled.num_bytes += num_bytes
            with self._state:
                self._buffered_bytes += num_bytes
                self._progress += 1
                self._num_sequences += 1
                self._num_tokens += len(result.token_ids_T)
        return labeled

    def _finish(
        self,
        store: LogitStore,
        lease: Lease,
        planned: list[PlannedRecord],
        labeled: _Labeled,
        engine_sec: float,
        read_sec: float,
    ) -> UnitResult:
        started = time.perf_counter()
        rejects = [*labeled.rejects, *_killers(planned, lease)]
        sequences, filtered = labeled.sequences, Counter[str]()
        if self._job.labels.mode == "generate":
            outcome = filter_responses(sequences, self._job.filters, self._special_ids)
            sequences, filtered = outcome.kept, outcome.counts
            rejects += _dropped(outcome.dropped, planned, self._job.labels.n)
        sequences = _in_plan_order(sequences, planned)
        filtered_sec = time.perf_counter() - started
        spent_sec = read_sec + engine_sec + filtered_sec
        entry, won = self._commit(store, lease, sequences, rejects, spent_sec)
        return UnitResult(
            lease_id=lease.lease_id,
            outcome="committed",
            entry=entry,
            won=won,
            rejects_by_kind=dict(Counter(reject.kind for reject in rejects)),
            filtered=dict(filtered),
            engine_sec=engine_sec,
            own_sec=read_sec + time.perf_counter() - started,
        )

    def _commit(
        self,
        store: LogitStore,
        lease: Lease,
        sequences: list[LabeledSequence],
        rejects: list[Reject],
        seconds: float,
    ) -> tuple[ShardEntry, bool]:
        return self._persistently(
            lambda: store.commit_unit(
                lease.unit.unit_id,
                lease.unit.unit_index,
                sequences,
                rejects,
                seconds=seconds,
                worker=self._name,
            )
        )

    def _persistently(self, use_storage: Callable[[], Result]) -> Result:
        """Labels are dear: storage that fails is tried again for `output.retry_sec`."""
        return persistently(use_storage, self._job.output.retry_sec, self._show_progress)

    def _show_progress(self) -> None:
        """Waiting for storage is no reason to lose the lease."""
        with self._state:
            self._progress += 1

    def _wait_for_room(self) -> None:
        """Hold back the engine while more labels wait to be written than memory is set aside for."""
        with self._state:
            while self._buffered_bytes > MAX_BUFFERED_BYTES and not self._leaving.is_set():
                self._state.wait(1.0)

    def _open_store(self) -> LogitStore:
        with self._state:
            if self._store is None:
                output = self._job.output
                self._store = LogitStore.open(output.uri, storage_options=output.storage_options)
            return self._store


def _prompts_of(planned: list[PlannedRecord], lease: Lease) -> list[TokenizedPrompt]:
    skipped = {position for position, _ in lease.skip}
    wanted = range(len(planned)) if lease.trial is None else lease.trial
    return [planned[position].prompt for position in wanted if position not in skipped]


def _killers(planned: list[PlannedRecord], lease: Lease) -> list[Reject]:
    rejects: list[Reject] = []
    for position, reason in lease.skip:
        record = planned[position]
        rejects.append(Reject(record.file, record.line, record.prompt.record_id, reason, "killed_engine"))
    return rejects


def _dropped(
    dropped: list[tuple[LabeledSequence, str, str]], planned: list[PlannedRecord], num_samples: int
) -> list[Reject]:
    by_id = {record.prompt.record_id: record for record in planned}
    rejects: list[Reject] = []
    for sequence, kind, reason in dropped:
        record = by_id[sequence.record_id]
        which = f"response {sequence.sample_index + 1} of {num_samples}: " if num_samples > 1 else ""
        rejects.append(Reject(record.file, record.line, sequence.record_id, which + reason, f"filter_{kind}"))
    return rejects


def _in_plan_order(sequences: list[LabeledSequence], planned: list[PlannedRecord]) -> list[LabeledSequence]:
    """As in the input, since engines finish in any order: a shard's order is the plan's."""
    place = {record.prompt.record_id: i for i, record in enumerate(planned)}
    return sorted(sequences, key=lambda sequence: (place[sequence.record_id], sequence.sample_index))
