"""Which unit goes to which worker, and what becomes of it when the worker is gone.

Pure: no Ray, no clock, no store. The driver tells what happened and when; the scheduler answers what to
lease next. Memory follows the units at work or in trouble, not the units of the plan.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from labeler.driver.bisection import Bisection, FailedUnit, Trouble
from labeler.records import Lease, WorkUnit

RECENT_DURATIONS = 101
FIRST_RETRY_SEC = 1.0
LONGEST_RETRY_SEC = 60.0


@dataclass(frozen=True, slots=True)
class LeasePolicy:
    """How patient the scheduler is."""

    leases_per_worker: int
    lease_sec: float
    """A lease expires when its worker has shown no progress for so long."""
    kills_before_bisection: int = 2
    bisections: int = 3
    """Bisections that find nothing before a unit is given up."""
    errors: int = 4
    """Failures of a unit that left the engine alive before it is given up."""
    straggler_factor: float = 2.0
    """Near the end a unit that has taken so many times the median is leased to a second worker."""
    straggler_sec: float = 10.0
    """And at least so long."""


@dataclass(slots=True)
class _Holding:
    lease: Lease
    since_sec: float
    deadline_sec: float


class Scheduler:
    """Hands out the units that `is_done` does not know yet, each until it is committed or given up."""

    def __init__(
        self, units: Iterator[WorkUnit], is_done: Callable[[str], bool], policy: LeasePolicy
    ) -> None:
        self._fresh = (unit for unit in units if not is_done(unit.unit_id))
        self._fresh_is_empty = False
        self._policy = policy
        self._returned: deque[WorkUnit] = deque()
        self._held: dict[int, _Holding] = {}
        self._leases_of_worker: dict[str, set[int]] = {}
        self._leases_of_unit: dict[str, set[int]] = {}
        self._trouble: dict[str, Trouble] = {}
        self._durations: deque[float] = deque(maxlen=RECENT_DURATIONS)
        self._next_lease_id = 0
        self.failed: list[FailedUnit] = []
        self.events: Counter[str] = Counter()
        """How often each kind of thing happened: "expired", "engine_died", "worker_lost", ..."""

    @property
    def is_finished(self) -> bool:
        """No unit is waiting or at work."""
        return not self._held and not self._has_waiting()

    @property
    def num_held(self) -> int:
        return len(self._held)

    @property
    def workers(self) -> frozenset[str]:
        return frozenset(self._leases_of_worker)

    def leases_of(self, worker_id: str) -> list[Lease]:
        """The worker's leases, oldest first."""
        return [self._held[lease_id].lease for lease_id in sorted(self._leases_of_worker.get(worker_id, ()))]

    def add_worker(self, worker_id: str) -> None:
        self._leases_of_worker.setdefault(worker_id, set())

    def next_lease(self, worker_id: str, now_sec: float) -> Lease | None:
        """A unit for the worker, or None if it has its share or nothing is to be done."""
        own = self._leases_of_worker[worker_id]
        if len(own) >= self._policy.leases_per_worker or self._holds_suspect(own):
            return None
        unit = self._take_returned(now_sec, alone=not own) or self._take_fresh()
        if unit is None:
            unit = self._straggler(worker_id, now_sec)
            if unit is None:
                return None
            self.events["leased_again"] += 1
        trouble = self._trouble.get(unit.unit_id)
        lease = Lease(
            lease_id=self._next_lease_id,
            unit=unit,
            worker_id=worker_id,
            skip=tuple(trouble.skip) if trouble else (),
            trial=trouble.bisection.trial if trouble and trouble.bisection else None,
            alone=trouble is not None and trouble.is_suspect,
        )
        self._next_lease_id += 1
        self._held[lease.lease_id] = _Holding(lease, now_sec, now_sec + self._policy.lease_sec)
        own.add(lease.lease_id)
        self._leases_of_unit.setdefault(unit.unit_id, set()).add(lease.lease_id)
        return lease

    def progressed(self, worker_id: str, now_sec: float) -> None:
        """The worker is getting on: all its leases last longer."""
        for lease_id in self._leases_of_worker.get(worker_id, ()):
            self._held[lease_id].deadline_sec = now_sec + self._policy.lease_sec

    def committed(self, lease_id: int, now_sec: float) -> bool:
        """The unit has its commit record. False if the lease was not held any more (it does no harm)."""
        holding = self._held.get(lease_id)
        if holding is None:
            return False
        self._durations.append(now_sec - holding.since_sec)
        unit_id = holding.lease.unit.unit_id
        for other in list(self._leases_of_unit.get(unit_id, ())):
            self._drop(other)
        self._trouble.pop(unit_id, None)
        return True

    def passed_trial(self, lease_id: int, now_sec: float) -> None:
        """The positions of a trial were labeled without harm."""
        holding = self._drop(lease_id)
        if holding is None:
            return
        unit, trouble = holding.lease.unit, self._trouble_of(holding.lease.unit)
        if trouble.bisection is not None:
            self._continue_bisection(unit, trouble, trouble.bisection.after(died=False))
        self._give_back(unit, now_sec)

    def failed_unit(self, lease_id: int, reason: str, now_sec: float) -> None:
        """The unit could not be finished, though the engine lives: try again later, or give it up."""
        holding = self._drop(lease_id)
        if holding is None:
            return
        unit, trouble = holding.lease.unit, self._trouble_of(holding.lease.unit)
        self.events["unit_failed"] += 1
        trouble.errors += 1
        trouble.last_reason = reason
        if trouble.errors >= self._policy.errors:
            self._give_up(unit, f"it failed {trouble.errors} times, last with: {reason}")
            return
        delay = min(FIRST_RETRY_SEC * 2 ** (trouble.errors - 1), LONGEST_RETRY_SEC)
        self._give_back(unit, now_sec + delay)

    def gave_back(self, lease_id: int, now_sec: float) -> None:
        """The worker returns a unit untouched, as it is about to leave."""
        holding = self._drop(lease_id)
        if holding is not None:
            self._give_back(holding.lease.unit, now_sec)

    def lost_worker(self, worker_id: str, now_sec: float) -> None:
        """The worker is gone for a reason of its own (node, network, an expired lease)."""
        self.events["worker_lost"] += 1
        self._return_all(worker_id, now_sec)

    def engine_died(self, worker_id: str, culprits: tuple[int, ...], reason: str, now_sec: float) -> None:
        """The worker's engine died with the leases `culprits` in it (if none is known: the oldest).

        All of them are suspects, and each is leased alone until it is committed or kills again.
        """
        self.events["engine_died"] += 1
        lease_ids = self._leases_of_worker.get(worker_id, set())
        suspects = [lease_id for lease_id in culprits if lease_id in lease_ids] or sorted(lease_ids)[:1]
        for lease_id in suspects:
            self._blame(self._held[lease_id].lease, reason)
        self._return_all(worker_id, now_sec)

    def expired(self, now_sec: float) -> list[Lease]:
        """Leases without progress for too long; the driver should end their workers."""
        late = [holding.lease for holding in self._held.values() if holding.deadline_sec <= now_sec]
        self.events["expired"] += len(late)
        return late

    def abandon(self) -> list[Lease]:
        """Give up all leases, on leaving."""
        leases = [holding.lease for holding in self._held.values()]
        for lease in leases:
            self._drop(lease.lease_id)
        return leases

    def _blame(self, lease: Lease, reason: str) -> None:
        unit, trouble = lease.unit, self._trouble_of(lease.unit)
        trouble.last_reason = reason
        if lease.trial is not None and trouble.bisection is not None:
            self._continue_bisection(unit, trouble, trouble.bisection.after(died=True))
            return
        trouble.kills += 1
        if trouble.kills >= self._policy.kills_before_bisection:
            self.events["bisected"] += 1
            skipped = {position for position, _ in trouble.skip}
            suspects = [position for position in range(unit.num_records) if position not in skipped]
            self._continue_bisection(unit, trouble, Bisection.of(suspects))

    def _continue_bisection(self, unit: WorkUnit, trouble: Trouble, bisection: Bisection) -> None:
        trouble.bisection = None
        if bisection.convicted:
            self.events["record_convicted"] += 1
            reason = (
                f"the engine died each time it labeled this record ({trouble.last_reason}); remove or "
                "shorten it, or report it to the engine's makers"
            )
            trouble.skip.append((bisection.suspects[0], reason))
            # One more death is enough to look for a second killer.
            trouble.kills = self._policy.kills_before_bisection - 1
        elif bisection.cleared:
            trouble.kills = 0
            trouble.fruitless_bisections += 1
        else:
            trouble.bisection = bisection

    def _return_all(self, worker_id: str, now_sec: float) -> None:
        for lease_id in sorted(self._leases_of_worker.get(worker_id, ())):
            holding = self._drop(lease_id)
            if holding is not None:
                self._give_back(holding.lease.unit, now_sec)
        self._leases_of_worker.pop(worker_id, None)

    def _give_back(self, unit: WorkUnit, not_before_sec: float) -> None:
        if self._leases_of_unit.get(unit.unit_id):
            return  # Another worker still has it.
        trouble = self._trouble.get(unit.unit_id)
        if trouble is not None:
            if trouble.fruitless_bisections >= self._policy.bisections:
                reason = f"engines keep dying with it, but not with any of its records: {trouble.last_reason}"
                self._give_up(unit, reason)
                return
            trouble.not_before_sec = not_before_sec
        self._returned.append(unit)

    def _give_up(self, unit: WorkUnit, reason: str) -> None:
        if self._leases_of_unit.get(unit.unit_id):
            return
        self._trouble.pop(unit.unit_id, None)
        self.failed.append(FailedUnit(unit, reason))

    def _holds_suspect(self, lease_ids: set[int]) -> bool:
        return any(self._held[lease_id].lease.alone for lease_id in lease_ids)

    def _take_returned(self, now_sec: float, *, alone: bool) -> WorkUnit | None:
        """A unit that came back and may go out again; a suspect only to a worker that holds nothing else."""
        for _ in range(len(self._returned)):
            unit = self._returned.popleft()
            trouble = self._trouble.get(unit.unit_id)
            if trouble is None:
                return unit
            if trouble.not_before_sec <= now_sec and (alone or not trouble.is_suspect):
                return unit
            self._returned.append(unit)
        return None

    def _take_fresh(self) -> WorkUnit | None:
        if self._fresh_is_empty:
            return None
        unit = next(self._fresh, None)
        self._fresh_is_empty = unit is None
        return unit

    def _has_waiting(self) -> bool:
        if self._returned:
            return True
        unit = self._take_fresh()
        if unit is None:
            return False
        self._returned.appendleft(unit)
        return True

    def _straggler(self, worker_id: str, now_sec: float) -> WorkUnit | None:
        """The unit held longest by one other worker alone, if that is far longer than usual."""
        if not self._durations or not self._held:
            return None
        usual_sec = statistics.median(self._durations)
        late_sec = max(self._policy.straggler_factor * usual_sec, self._policy.straggler_sec)
        for holding in self._held.values():  # Oldest first, as a dict keeps the order of insertion.
            if now_sec - holding.since_sec < late_sec:
                return None
            lease = holding.lease
            alone = len(self._leases_of_unit[lease.unit.unit_id]) == 1
            if alone and lease.worker_id != worker_id and not lease.alone:
                return lease.unit
        return None

    def _drop(self, lease_id: int) -> _Holding | None:
        holding = self._held.pop(lease_id, None)
        if holding is None:
            return None
        self._leases_of_worker.get(holding.lease.worker_id, set()).discard(lease_id)
        unit_id = holding.lease.unit.unit_id
        holders = self._leases_of_unit[unit_id]
        holders.discard(lease_id)
        if not holders:
            del self._leases_of_unit[unit_id]
        return holding

    def _trouble_of(self, unit: WorkUnit) -> Trouble:
        return self._trouble.setdefault(unit.unit_id, Trouble())
