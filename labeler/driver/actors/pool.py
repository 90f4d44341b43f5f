"""The actors of a job: placed, loaded, watched, ended and replaced.

Ray's own restarts and retries are off: a dead engine is final for its actor, and what a dead actor held
is for the scheduler to decide. The pool reports what happened as events.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from labeler.config.loading import JobConfig
from labeler.driver.actors.pool_events import (
    LeaseEnded,
    LeaseFailed,
    PoolEvent,
    ReplicaGivenUp,
    StartFailed,
    WorkerAlive,
    WorkerDied,
    WorkerLeft,
    WorkerReady,
)
from labeler.driver.actors.room_watch import RoomWatch, waited_sec
from labeler.driver.actors.slots import Call, CallKind, Slot
from labeler.errors import EngineDiedError
from labeler.on_ray.cores import CoreBook
from labeler.on_ray.failure_causes import first_cause, left_actor_alive
from labeler.on_ray.head_watch import HeadWatch
from labeler.on_ray.node_probes import NodeProbes
from labeler.on_ray.node_states import NodeStates
from labeler.on_ray.placement import actor_options, release, reserve
from labeler.prompting.segment_marks import NO_MARKS, SegmentMarks
from labeler.records import Lease
from labeler.teacher.response_ends import ResponseEnds
from labeler.worker.actor import Worker
from logitstore.job_objects import WorkerView

HEARTBEAT_SEC = 1.0
HEARTBEATS_PER_SEC = 100
"""Heartbeats of all workers together, so that a thousand workers do not keep the driver busy."""
DRAIN_POLL_SEC = 5.0
LONGEST_PAUSE_SEC = 30.0
LEAVE_SEC = 10.0

Fault = Literal["engine", "memory", "elsewhere"]
"""Whose it is that an actor is lost. "engine": what it held may be the cause, and the death counts against
the replica. "memory": Ray ended it as its node was low on memory, which all on the node take: no unit is
suspected, but the death counts. "elsewhere": neither."""


class ActorPool:
    """`replicas` places, each with at most one live actor. Call `poll` often."""

    def __init__(
        self,
        job: JobConfig,
        ends: ResponseEnds,
        actor_class: Any = None,
        marks: SegmentMarks = NO_MARKS,
        probes: NodeProbes | None = None,
    ) -> None:
        """`actor_class` stands in for the actors of `Worker`, for measurements of the driver alone. By
        `probes` nodes that joined since the start are asked what they lack before an engine loads there."""
        self._job = job
        self._probes = probes
        self._ends, self._marks = ends, marks
        self._slots = [Slot(index) for index in range(job.workers.replicas)]
        self._calls: dict[Any, Call] = {}
        """By Ray's reference to the answer."""
        self._cores = CoreBook(job.workers.cores) if job.workers.gpus == 0 else None
        self._actor_class = actor_class or ray.remote(Worker)
        self._heartbeat_sec = max(HEARTBEAT_SEC, job.workers.replicas / HEARTBEATS_PER_SEC)
        self._closing = False
        self._any_was_ready = False
        self._next_drain_poll_sec = 0.0
        self._past_held_sec = 0.0
        self._head = HeadWatch(ray.get_runtime_context().gcs_address)
        self._nodes = NodeStates(self._head)
        self._room = RoomWatch(job.workers, self._head, job.limits.wait_sec)

    @property
    def is_in_contact(self) -> bool:
        """Whether the cluster's head has answered of late."""
        return self._head.is_in_contact

    @property
    def num_given_up(self) -> int:
        return sum(slot.state == "given_up" for slot in self._slots)

    @property
    def held_sec(self) -> float:
        """Seconds that replicas held their devices, summed over them; those that never got ready too."""
        now = time.monotonic()
        return self._past_held_sec + sum(slot.held_sec(now) for slot in self._slots)

    @property
    def waited_sec(self) -> float:
        """For how long replicas have waited for room while none has any; 0 where one has."""
        return waited_sec(self._slots, time.monotonic())

    @property
    def lack_of_room(self) -> str:
        """Why replicas have long found no room in the cluster; "" where all have some."""
        return self._room.lack_of_room

    def ready_workers(self) -> list[str]:
        """Workers that can take units."""
        return [slot.worker_id for slot in self._slots if slot.state == "ready"]

    def views(self) -> list[WorkerView]:
        views: list[WorkerView] = []
        for slot in self._slots:
            in_engine = slot.heartbeat.in_engine if slot.heartbeat else ()
            units = [slot.leases[lease_id].unit.unit_id for lease_id in in_engine if lease_id in slot.leases]
            unit = units[0] if units else None
            views.append(WorkerView(slot.worker_id, slot.node_name, slot.state, unit, slot.restarts))
        return views

    def submit(self, lease: Lease) -> None:
        slot = self._slot_of(lease.worker_id)
        slot.leases[lease.lease_id] = lease
        self._call(slot, "label", slot.handle.label_unit.remote(lease), lease.lease_id)

    def poll(self, timeout_sec: float) -> list[PoolEvent]:
        """What happened since the last call, waiting for something at most so long.

        Raises ClusterLostError: nothing more will happen.
        """
        self._head.note()
        now = time.monotonic()
        events: list[PoolEvent] = []
        for slot in self._slots:
            self._start_if_empty(slot, now)
            self._ask_for_heartbeat(slot, now)
            if slot.state == "loading" and now - slot.since_sec > self._job.workers.start_sec:
                reason = f"the engine did not load within workers.start_sec = {self._job.workers.start_sec:g}"
                events += self._lost(slot, reason, "engine")
            if slot.state == "leaving" and (not slot.leases or now >= slot.leave_by_sec):
                events.append(WorkerLeft(slot.worker_id, slot.node_name))
                self._vacate(slot, pause_sec=0.0)
        events += self._room.note(self._slots, now)
        events += self._leave_nodes_about_to_go(now)
        if not self._calls:
            time.sleep(timeout_sec)
            return events
        waiting = list(self._calls)
        done, _ = ray.wait(waiting, num_returns=1, timeout=timeout_sec)
        if done:
            done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for ref in done:
            if ref in self._calls:
                events += self._answered(ref)
        return events

    def end(self, worker_id: str, reason: str) -> list[PoolEvent]:
        """End a worker that no longer gets on, and start another in its place."""
        return self._lost(self._slot_of(worker_id), reason, "engine")

    def give_up(self, worker_id: str, reason: str) -> list[PoolEvent]:
        """End a worker that is of no use, and start no other in its place."""
        slot = self._slot_of(worker_id)
        events = self._lost(slot, reason, "elsewhere")
        slot.state = "given_up"
        return [*events, ReplicaGivenUp(worker_id, reason)]

    def leave(self) -> None:
        """Start no further actor and let the present ones begin no further unit."""
        self._closing = True
        for slot in self._slots:
            if slot.state == "ready":
                slot.handle.leave.remote()

    def close(self) -> None:
        """End all actors, giving engines a moment to free what they hold."""
        if self._head.is_gone:
            return
        self._closing = True
        closing = [slot.handle.close.remote() for slot in self._slots if slot.state in ("ready", "leaving")]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=LEAVE_SEC)
        for slot in self._slots:
            if slot.handle is not None:
                ray.kill(slot.handle)
                release(slot.group)
        self._calls.clear()

    def _slot_of(self, worker_id: str) -> Slot:
        for slot in self._slots:
            if slot.worker_id == worker_id:
                return slot
        raise KeyError(worker_id)

    def _call(self, slot: Slot, kind: CallKind, ref: Any, lease_id: int = 0, node_id: str = "") -> None:
        self._calls[ref] = Call(slot, slot.generation, kind, lease_id, node_id)

    def _start_if_empty(self, slot: Slot, now_sec: float) -> None:
        if (
            slot.state != "empty"
            or self._closing
            or now_sec < slot.not_before_sec
            or not self._head.answers()
        ):
            return
        slot.group = reserve(self._job.workers)
        options = actor_options(self._job.workers, slot.group)
        slot.handle = self._actor_class.options(**options).remote(
            self._job, slot.worker_id, self._ends, marks=self._marks
        )
        slot.state, slot.since_sec = "placing", now_sec
        self._call(slot, "place", slot.handle.place.remote())

    def _ask_for_heartbeat(self, slot: Slot, now_sec: float) -> None:
        if slot.state in ("ready", "leaving") and now_sec >= slot.next_heartbeat_sec:
            slot.next_heartbeat_sec = float("inf")  # Until this one is answered.
            self._call(slot, "heartbeat", slot.handle.heartbeat.remote())

    def _answered(self, ref: Any) -> Iterator[PoolEvent]:
        call = self._calls.pop(ref)
        slot = call.slot
        if call.generation != slot.generation:
            return  # The answer of an actor that was ended.
        try:
            value: Any = ray.get(ref, timeout=60)
        except (RayError, EngineDiedError, GetTimeoutError) as error:
            yield from self._failed(call, error)
            return
        now = time.monotonic()
        if call.kind == "place":
            slot.node_ids, slot.node_name = (value.node_id, *value.other_node_ids), value.host
            slot.cores = self._cores.take(value, slot.index) if self._cores is not None else None
            slot.state, slot.since_sec, slot.held_since_sec = "loading", now, now
            self._probe_or_load(slot)
        elif call.kind == "probe" and self._probes is not None:
            if lack := self._probes.take(call.node_id, value):
                yield from self._lost(slot, lack, "engine")
            else:
                self._probe_or_load(slot)
        elif call.kind == "start":
            slot.state, self._any_was_ready = "ready", True
            yield WorkerReady(slot.worker_id, value, now - slot.since_sec)
        elif call.kind == "heartbeat":
            slot.heartbeat, slot.next_heartbeat_sec = value, now + self._heartbeat_sec
            yield WorkerAlive(slot.worker_id, value)
        elif call.kind == "label":
            lease = slot.leases.pop(call.lease_id)
            if lease.trial is None:
                slot.deaths_in_row = 0
            yield LeaseEnded(slot.worker_id, value)

    def _probe_or_load(self, slot: Slot) -> None:
        """Load the engine once all nodes of the replica are known to have what it needs."""
        for node_id in slot.node_ids:
            if self._probes is not None and not self._probes.is_known(node_id):
                self._call(slot, "probe", self._probes.ask(node_id), node_id=node_id)
                return
        self._call(slot, "start", slot.handle.start.remote(slot.cores))

    def _failed(self, call: Call, error: Exception) -> list[PoolEvent]:
        slot, lease_id = call.slot, call.lease_id
        reason = first_cause(error)
        if call.kind == "label" and left_actor_alive(error):
            slot.leases.pop(lease_id, None)
            return [LeaseFailed(slot.worker_id, lease_id, reason)]
        if isinstance(error, OutOfMemoryError):
            return self._lost(slot, reason, "memory")
        culprits = error.culprits if isinstance(error, EngineDiedError) else ()
        is_of_our_code = isinstance(error, RayTaskError) and not isinstance(error, RayActorError)
        may_be_node = not is_of_our_code or len(slot.node_ids) > 1
        is_elsewhere = may_be_node and not self._nodes.are_alive(slot.node_ids)
        return self._lost(slot, reason, "elsewhere" if is_elsewhere else "engine", culprits)

    def _lost(self, slot: Slot, reason: str, fault: Fault, culprits: tuple[int, ...] = ()) -> list[PoolEvent]:
        """The slot's actor is gone or unfit."""
        worker_id, was_ready = slot.worker_id, slot.state in ("ready", "leaving")
        if not culprits and slot.heartbeat is not None:
            culprits = slot.heartbeat.in_engine
        on_trial = any(lease.trial is not None for lease in slot.leases.values())
        if fault == "memory" or (fault == "engine" and not on_trial):
            slot.deaths_in_row += 1
            if not self._any_was_ready:
                # What fails before any engine ever loaded will rarely load the third time.
                slot.deaths_in_row = max(slot.deaths_in_row, self._job.workers.restarts)
        pause = min(2.0 ** (slot.deaths_in_row - 1), LONGEST_PAUSE_SEC) if slot.deaths_in_row else 0.0
        self._vacate(slot, pause)
        events: list[PoolEvent] = []
        if was_ready:
            events.append(WorkerDied(worker_id, reason, fault == "engine", culprits))
        if slot.deaths_in_row > self._job.workers.restarts:
            slot.state = "given_up"
            events.append(ReplicaGivenUp(worker_id, reason))
        elif not was_ready:
            events.append(StartFailed(worker_id, reason))
        return events

    def _vacate(self, slot: Slot, pause_sec: float) -> None:
        """End the slot's actor for certain and make room for another."""
        if self._head.answers():
            ray.kill(slot.handle)
            release(slot.group)
        if self._cores is not None:
            self._cores.free(slot.index)
        now = time.monotonic()
        self._past_held_sec += slot.held_sec(now)
        slot.held_since_sec = None
        slot.generation += 1
        slot.restarts += 1
        slot.handle, slot.group, slot.node_ids = None, None, ()
        slot.heartbeat, slot.next_heartbeat_sec = None, 0.0
        slot.leases.clear()
        slot.state, slot.not_before_sec = "empty", now + pause_sec

    def _leave_nodes_about_to_go(self, now_sec: float) -> list[PoolEvent]:
        """Let actors on nodes with a spot notice or a scale-down finish what they have begun.

        An engine that still loads would be asked to leave as soon as it is ready, so it goes at once. Ray
        places no actor on such a node: the ones that follow come up elsewhere.
        """
        if now_sec < self._next_drain_poll_sec or self._job.workers.address is None:
            return []
        self._next_drain_poll_sec = now_sec + DRAIN_POLL_SEC
        about_to_go = self._nodes.about_to_go()
        events: list[PoolEvent] = []
        for slot in self._slots:
            if not any(node_id in about_to_go for node_id in slot.node_ids):
                continue
            if slot.state == "ready":
                slot.state, slot.leave_by_sec = "leaving", now_sec + self._job.workers.drain_sec
                slot.handle.leave.remote()
            elif slot.state == "loading":
                events.append(WorkerLeft(slot.worker_id, slot.node_name))
                self._vacate(slot, pause_sec=0.0)
        return events
