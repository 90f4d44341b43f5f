"""What a job has done so far: counted by the driver, kept as `status.json` in the store for everyone else."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from labeler.job.driver_lease import present_holder, shows_life
from labeler.planning.plan import Plan
from labeler.records import Committed, Heartbeat
from logitstore.errors import ObjectNotFoundError
from logitstore.index.entries import ShardIndex
from logitstore.job_objects import STATUS_NAME, Cost, JobState, JobStatus, WorkerView
from logitstore.job_parsing import parse_status
from logitstore.manifest.fields import ShardEntry
from logitstore.manifest.reading import MANIFEST_NAME
from logitstore.objects.opening import Objects
from logitstore.records import Reject
from logitstore.store import LogitStore

RATE_WINDOW_SEC = 30.0
SETTLED_SHARE = 0.8
MAX_CAUSES = 10


@dataclass(slots=True)
class Tally:
    """The driver's running account. `now_sec` is a monotonic clock."""

    units_total: int = 0
    tokens_total: int = 0
    """Tokens of the plan; responses that are still to be written are not in it."""
    units_done: int = 0
    sequences: int = 0
    tokens: int = 0
    rows: int = 0
    bytes: int = 0
    units_of_run: int = 0
    """Units done since this driver started."""
    tokens_of_run: int = 0
    """Their tokens."""
    engine_sec: float = 0.0
    own_sec: float = 0.0
    rejects_by_kind: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """Records that planning or an engine refused, by kind, however many of their responses; what filters
    drop is not among them."""
    filtered: Counter[str] = field(default_factory=Counter)
    failures_by_kind: Counter[str] = field(default_factory=Counter)
    causes: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_CAUSES))
    _live_tokens: dict[str, int] = field(default_factory=dict)
    _past_tokens: int = 0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def count_stored(self, entry: ShardEntry) -> None:
        """A unit that is committed, by this run or one before."""
        self.units_done += 1
        self.sequences += entry.num_sequences
        self.tokens += entry.num_tokens
        self.rows += entry.num_rows
        self.bytes += entry.num_bytes

    def count_all_stored(self, shards: ShardIndex) -> None:
        """The same for all of them, from the index's columns."""
        self.units_done += len(shards)
        self.sequences += int(shards.column("num_sequences").sum())
        self.tokens += int(shards.column("num_tokens").sum())
        self.rows += int(shards.column("num_rows").sum())
        self.bytes += int(shards.column("num_bytes").sum())

    def count_result(self, result: Committed) -> None:
        """A unit committed in this run, for the first time."""
        self.count_stored(result.entry)
        self.units_of_run += 1
        self.tokens_of_run += result.entry.num_tokens
        self.engine_sec += result.engine_sec
        self.own_sec += result.own_sec
        self.count_rejects(result.rejects)
        self.filtered.update(result.filtered)

    def count_planned_rejects(self, by_kind: Mapping[str, int]) -> None:
        """Those of planning, one for each record."""
        self.rejects_by_kind.update(by_kind)
        self.refused.update(by_kind)

    def count_rejects(self, rejects: Iterable[Reject]) -> None:
        """Those of one or more whole units: one for a record, or for each of its responses."""
        kind_of: dict[tuple[str, int, str | None], str] = {}
        for reject in rejects:
            self.rejects_by_kind[reject.kind] += 1
            if not reject.kind.startswith("filter_"):
                kind_of.setdefault((reject.file, reject.line, reject.record_id), reject.kind)
        self.refused.update(kind_of.values())

    def count_failure(self, kind: str, cause: str) -> None:
        self.failures_by_kind[kind] += 1
        self.causes.append(f"{kind}: {cause}")

    def heard(self, worker_id: str, heartbeat: Heartbeat, now_sec: float) -> None:
        """Take up a worker's progress, so that the rate moves between commits."""
        self._live_tokens[worker_id] = heartbeat.num_tokens
        self._samples.append((now_sec, self.tokens_seen))
        while now_sec - self._samples[0][0] > RATE_WINDOW_SEC:
            self._samples.popleft()

    def forget(self, worker_id: str) -> None:
        self._past_tokens += self._live_tokens.pop(worker_id, 0)

    @property
    def tokens_seen(self) -> int:
        """Tokens that engines of this run labeled, whether stored by now or not."""
        return max(self._past_tokens + sum(self._live_tokens.values()), self.tokens_of_run)

    @property
    def tokens_per_second(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (first_sec, first), (last_sec, last) = self._samples[0], self._samples[-1]
        return (last - first) / (last_sec - first_sec) if last_sec > first_sec else 0.0

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.rows if self.rows else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None before the rate is known. Until a first unit is there that takes most of the rate's window: an
        engine that has just begun has many responses at work and few that are done."""
        rate = self.tokens_per_second
        if not rate or not self.units_total:
            return None
        heard_sec = self._samples[-1][0] - self._samples[0][0]
        if not self.units_of_run and heard_sec < RATE_WINDOW_SEC * SETTLED_SHARE:
            return None
        if self.units_done:
            tokens_left = self.tokens / self.units_done * (self.units_total - self.units_done)
        else:
            tokens_left = self.tokens_total
        return tokens_left / rate


def snapshot(
    tally: Tally,
    *,
    state: JobState,
    started: str = "",
    workers: Iterable[WorkerView] = (),
    queue_depth: int = 0,
    cost: Cost | None = None,
    message: str = "",
) -> JobStatus:
    return JobStatus(
        state=state,
        started=started,
        updated=utc_now(),
        units_done=tally.units_done,
        units_total=tally.units_total,
        sequences=tally.sequences,
        tokens=tally.tokens,
        rows=tally.rows,
        bytes=tally.bytes,
        rejects=sum(tally.rejects_by_kind.values()),
        rejects_by_kind=dict(tally.rejects_by_kind),
        filtered=dict(tally.filtered),
        tokens_per_second=round(tally.tokens_per_second, 2),
        bytes_per_token=round(tally.bytes_per_token, 2),
        seconds_left=tally.seconds_left,
        workers=tuple(workers),
        failures=sum(tally.failures_by_kind.values()),
        failures_by_kind=dict(tally.failures_by_kind),
        causes=tuple(tally.causes),
        queue_depth=queue_depth,
        cost=cost,
        engine_sec=round(tally.engine_sec, 3),
        own_sec=round(tally.own_sec, 3),
        message=message,
    )


def read_status(
    uri: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    on_wait: Callable[[str], None] = lambda _: None,
) -> JobStatus:
    """The status of any store: what its driver wrote last, with the counts of what is committed by now.

    `on_wait` is told where a driver is watched for seconds, since it may be gone.
    Raises StoreNotFoundError where no job has begun, CorruptManifestError where the status is not readable.
    A store without a labeling job (merged, imported) gets a status made from its shards alone.
    """
    objects = Objects(uri, storage_options)
    try:
        written = parse_status(objects.get(STATUS_NAME))
    except ObjectNotFoundError:
        written = None
    store = None
    if written is None or objects.exists(MANIFEST_NAME):
        store = LogitStore.open(uri, storage_options=storage_options, writing=True)
    counted = _counted(objects, store)
    if written is None:
        state = "finished" if counted.units_done == counted.units_total else "stopped"
        return snapshot(counted, state=state)
    status = replace(
        written,
        units_done=counted.units_done,
        sequences=counted.sequences,
        tokens=counted.tokens,
        rows=counted.rows,
        bytes=counted.bytes,
        bytes_per_token=round(counted.bytes_per_token, 2),
        rejects=sum(counted.rejects_by_kind.values()),
        rejects_by_kind=dict(counted.rejects_by_kind),
    )
    if not written.is_active or _driver_lives(objects, written, on_wait):
        return status
    return replace(
        status,
        state="interrupted",
        message="the driver is gone; run the same command again to go on",
        workers=(),
        queue_depth=0,
        tokens_per_second=0.0,
        seconds_left=None,
    )


def _counted(objects: Objects, store: LogitStore | None) -> Tally:
    """What plan and shards hold."""
    tally = Tally()
    if store is not None:
        tally.count_all_stored(store.shards())
        tally.count_rejects(store.rejects())
    totals = Plan(objects).totals()
    if totals is not None:
        tally.count_planned_rejects(totals.rejects_by_kind)
    tally.units_total = totals.num_units if totals is not None else tally.units_done
    return tally


def _driver_lives(objects: Objects, written: JobStatus, on_wait: Callable[[str], None]) -> bool:
    """As far as can be told: its process on this machine, else whether it has just said something. Where it
    seems not to have, that may be its clock or this machine's, and its lease is watched."""
    holder = present_holder(objects)
    if holder is None:
        return False
    if holder.is_on_this_machine:
        return holder.is_running
    silent_sec = time.time() - datetime.fromisoformat(written.updated).timestamp()
    return abs(silent_sec) < 2 * holder.renew_sec or shows_life(objects, holder, on_wait)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
