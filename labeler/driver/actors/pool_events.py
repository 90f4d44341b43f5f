"""What the pool of actors tells the driver's loop, and what of it is shown to people."""

from __future__ import annotations

from dataclasses import dataclass

from labeler.records import Heartbeat, TeacherDescription, UnitResult


@dataclass(frozen=True, slots=True)
class WorkerReady:
    worker_id: str
    description: TeacherDescription
    load_sec: float


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """The worker is gone and what it held is free."""

    worker_id: str
    reason: str
    engine: bool
    """Whether its work may be the cause; False where its node, that one's memory or the network went."""
    culprits: tuple[int, ...]
    """The leases that were in the engine, oldest first, as far as known."""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The worker was lost before its engine was ready; another is started in its place."""

    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """The worker went as it was asked to, since its node is about to go; what it still held is free."""

    worker_id: str
    node_name: str


@dataclass(frozen=True, slots=True)
class WorkerAlive:
    worker_id: str
    heartbeat: Heartbeat


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    worker_id: str
    result: UnitResult


@dataclass(frozen=True, slots=True)
class LeaseFailed:
    worker_id: str
    lease_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReplicaGivenUp:
    """No further actor is started in this place."""

    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReplicasWait:
    """Replicas have long found no room in the cluster."""

    reason: str


PoolEvent = (
    WorkerReady
    | WorkerDied
    | StartFailed
    | WorkerLeft
    | WorkerAlive
    | LeaseEnded
    | LeaseFailed
    | ReplicaGivenUp
    | ReplicasWait
)
