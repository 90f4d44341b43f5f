"""The worker: one teacher in one Ray actor, units in, committed shards out.

The class is plain Python, made an actor by `pool.py`, so that tests drive it without Ray. Its threads read
units, filter, write and commit while the engine goes on with the next unit (`engine_feed.py`). Labels never
leave the process: only a commit's row does.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import ray

from labeler.config.loading import JobConfig
from labeler.errors import PromptError, StaleLeaseError
from labeler.on_ray.placement import other_nodes_of_replica
from labeler.patience import persistently
from labeler.planning.plan import read_unit
from labeler.prompting.segment_marks import NO_MARKS, SegmentMarks
from labeler.prompting.tokenization import load_tokenizer
from labeler.records import (
    Committed,
    GaveBack,
    Heartbeat,
    Lease,
    PassedTrial,
    Placement,
    PlannedRecord,
    TeacherDescription,
    TokenizedPrompt,
    UnitResult,
)
from labeler.teacher.protocol import Teacher, build_teacher
from labeler.teacher.response_ends import ResponseEnds
from labeler.worker.bill_writer import BillWriter
from labeler.worker.engine_feed import EngineFeed, FedUnit
from labeler.worker.filters import filter_responses
from labeler.worker.given_ids import GivenIds
from labeler.worker.segmenting import Segmenter, with_segments
from labeler.worker.unit_rejects import dropped, killers, refused
from logitstore.manifest.fields import SEGMENTS, ShardEntry
from logitstore.objects.opening import Objects
from logitstore.records import LabeledSequence, Reject
from logitstore.rows.silent_rows import without_rows
from logitstore.store import LogitStore

MAX_BUFFERED_BYTES = 1 << 30
Result = TypeVar("Result")


class Worker:
    """Labels leases with one teacher. Its methods may be called from several threads at once."""

    def __init__(
        self,
        job: JobConfig,
        name: str,
        ends: ResponseEnds,
        load_teacher: Callable[[str | None], Teacher] | None = None,
        marks: SegmentMarks = NO_MARKS,
    ) -> None:
        """`load_teacher` stands in for the job's own teacher, bound to the cores it is given; by `marks` the
        parts of its responses are told from each other."""
        self._job = job
        self._load_teacher = load_teacher or self._load_own_teacher
        self._name = name
        self._ends = ends
        self._marks = marks
        self._segmenter: Segmenter | None = None
        self._feed: EngineFeed | None = None
        self._bill: BillWriter | None = None
        self._store: LogitStore | None = None
        self._given: GivenIds | None = None
        self._leaving = threading.Event()
        self._making = threading.Lock()
        """Held by the first thread that needs what all share; `_state` is free, for the heartbeat."""
        self._state = threading.Condition()
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
            other_node_ids=other_nodes_of_replica(),
        )

    def start(self, cores: str | None) -> TeacherDescription:
        """Load the teacher, bound to `cores`. Takes as long as the model takes to load."""
        self._feed = EngineFeed(
            lambda: self._load_teacher(cores), self._job.labels_per_record, self._count_labeled
        )
        billed = self._feed.teacher.billed()
        if billed is not None:
            teacher, output = self._feed.teacher, self._job.output
            self._bill = BillWriter(
                Objects(output.uri, output.storage_options),
                self._name,
                self._job.cost,
                lambda: teacher.billed() or billed,
            )
        return self._feed.teacher.describe()

    def _load_own_teacher(self, cores: str | None) -> Teacher:
        labels = self._job.labels
        if not labels.rows:  # The least that an engine gives; it is left out of the store.
            labels = labels.model_copy(update={"top_k": 1, "temperatures": (1.0,), "label_at": "decode"})
        teacher = self._job.teacher
        if self._job.shares_gpu:  # vLLM's own default is of a whole GPU
            share = {"gpu_memory_utilization": self._job.gpu_memory_utilization}
            teacher = teacher.model_copy(update={"engine_args": share | teacher.engine_args})
        return build_teacher(
            teacher,
            labels,
            self._job.sampling,
            cores=cores,
            machines=self._job.workers.machines,
            ends=self._ends,
        )

    def label_unit(self, lease: Lease) -> UnitResult:
        """Label a unit and commit it; on a trial only label. Raises EngineDiedError: replace this actor."""
        feed = self._feed
        if feed is None:
            raise RuntimeError(f"{self._name} was given a unit before `start` had loaded its teacher")
        started = time.perf_counter()
        store = self._open_store()
        planned = self._persistently(lambda: read_unit(store.objects, lease.unit))
        prompts, without_ids = self._with_ids(store, _prompts_of(planned, lease))
        read_sec = time.perf_counter() - started
        self._wait_for_room()
        fed = FedUnit.of(lease.lease_id, prompts, self._job.labels_per_record)
        fed.errors += without_ids
        try:
            if not feed.run(fed):
                return GaveBack(lease.lease_id)
            if lease.trial is not None:
                return PassedTrial(lease.lease_id, fed.engine_sec)
            return self._finish(store, lease, planned, fed, read_sec)
        finally:
            with self._state:
                self._buffered_bytes -= sum(_num_bytes(sequence) for sequence in fed.sequences)
                self._progress += 1
                self._state.notify_all()

    def heartbeat(self) -> Heartbeat:
        billed = self._feed.teacher.billed() if self._feed is not None else None
        # A server that lets one request after the other run into its timeout is no engine that hangs.
        num_answered = 0 if billed is None else billed.num_answers + billed.num_lost
        with self._state:
            return Heartbeat(
                progress=self._progress + num_answered,
                in_engine=self._feed.in_engine if self._feed is not None else (),
                num_sequences=self._num_sequences,
                num_tokens=self._num_tokens,
            )

    def leave(self) -> None:
        """Begin no further unit; what is in the engine is finished, the rest is given back."""
        self._leaving.set()
        if self._feed is not None:
            self._feed.leave()

    def close(self) -> None:
        """Free the engine."""
        self.leave()
        if self._feed is not None:
            self._feed.close()
        if self._bill is not None:
            self._bill.close()

    def _count_labeled(self, sequence: LabeledSequence) -> None:
        with self._state:
            self._buffered_bytes += _num_bytes(sequence)
            self._progress += 1
            self._num_sequences += 1
            self._num_tokens += len(sequence.token_ids_T)

    def _finish(
        self,
        store: LogitStore,
        lease: Lease,
        planned: list[PlannedRecord],
        fed: FedUnit,
        read_sec: float,
    ) -> Committed:
        started = time.perf_counter()
        rejects = [*refused(fed.errors, planned), *killers(planned, lease)]
        segmenter = self._own_segmenter()
        sequences, filtered = fed.sequences, Counter[str]()
        if SEGMENTS in store.manifest.features:
            sequences = with_segments(sequences, [record.prompt for record in planned], segmenter)
        if self._job.labels.mode == "generate":
            outcome = filter_responses(sequences, self._job.filters, segmenter)
            sequences, filtered = outcome.kept, outcome.counts
            rejects += dropped(outcome.dropped, planned, self._job.sampling.n)
        sequences = _in_plan_order(sequences, planned)
        if not self._job.labels.rows:
            sequences = [without_rows(sequence) for sequence in sequences]
        filtered_sec = time.perf_counter() - started
        spent_sec = read_sec + fed.engine_sec + filtered_sec
        entry, won = self._commit(store, lease, sequences, rejects, spent_sec)
        return Committed(
            lease_id=lease.lease_id,
            entry=entry,
            won=won,
            rejects=tuple(rejects),
            filtered=dict(filtered),
            engine_sec=fed.engine_sec,
            own_sec=read_sec + time.perf_counter() - started,
        )

    def _own_segmenter(self) -> Segmenter:
        with self._making:
            if self._segmenter is None:
                decode = None
                if not self._marks.are_tokens:
                    decode = load_tokenizer(self._job.teacher).decode
                self._segmenter = Segmenter(self._marks, self._ends, decode)
            return self._segmenter

    def _commit(
        self,
        store: LogitStore,
        lease: Lease,
        sequences: list[LabeledSequence],
        rejects: list[Reject],
        seconds: float,
    ) -> tuple[ShardEntry, bool]:
        # Records that were planned anew since are another's to label: see `planning/relabeling.py`.
        if not self._persistently(lambda: store.objects.exists(lease.unit.segment)):
            raise StaleLeaseError(
                f"the records of unit {lease.unit.unit_id} were replaced while they were labeled; its labels "
                "are thrown away, and the driver that replaced them has it labeled again"
            )
        if self._bill is not None:
            self._persistently(self._bill.write)
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
        """Labels cost engine time: storage that fails is tried again for `output.retry_sec`."""
        return persistently(use_storage, self._job.output.retry_sec, self._show_progress)

    def _show_progress(self) -> None:
        """Waiting for storage is no reason to lose the lease."""
        with self._state:
            self._progress += 1

    def _with_ids(
        self, store: LogitStore, prompts: list[TokenizedPrompt]
    ) -> tuple[list[TokenizedPrompt], list[PromptError]]:
        """The prompts with the ids at which their rows are wanted, if the job has such, and those without."""
        if not self._job.labels.given:
            return prompts, []
        with self._making:
            given = self._given = self._given or self._persistently(
                lambda: GivenIds(self._job, store.objects)
            )
        return self._persistently(lambda: given.of(prompts))

    def _wait_for_room(self) -> None:
        """Hold back the engine while more labels wait to be written than memory is set aside for."""
        with self._state:
            while self._buffered_bytes > MAX_BUFFERED_BYTES and not self._leaving.is_set():
                self._state.wait(1.0)

    def _open_store(self) -> LogitStore:
        output = self._job.output
        with self._making:
            if self._store is None:
                self._store = self._persistently(
                    lambda: LogitStore.open(output.uri, storage_options=output.storage_options, writing=True)
                )
            return self._store


def _prompts_of(planned: list[PlannedRecord], lease: Lease) -> list[TokenizedPrompt]:
    skipped = {position for position, _ in lease.skip}
    wanted = range(len(planned)) if lease.trial is None else lease.trial
    return [planned[position].prompt for position in wanted if position not in skipped]


def _num_bytes(sequence: LabeledSequence) -> int:
    return sequence.rows.logits_NK.nbytes + sequence.rows.token_ids_NK.nbytes


def _in_plan_order(sequences: list[LabeledSequence], planned: list[PlannedRecord]) -> list[LabeledSequence]:
    """As in the input, since engines finish in any order: a shard's order is the plan's."""
    place = {record.prompt.record_id: i for i, record in enumerate(planned)}
    return sorted(sequences, key=lambda sequence: (place[sequence.record_id], sequence.sample_index))
