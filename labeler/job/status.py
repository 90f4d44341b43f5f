"""What a job has done so far: counted by the driver, kept as `status.json` in the store for everyone else."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from labeler.job.driver_lease import present_holder
from labeler.planning.plan import Plan
from labeler.records import Heartbeat, UnitResult
from logitstore.errors import ObjectNotFoundError
from logitstore.manifest.fields import ShardEntry
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore

STATUS_NAME = "status.json"
RATE_WINDOW_SEC = 30.0
MAX_CAUSES = 10
ACTIVE_STATES = ("planning", "starting", "running", "draining")


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One look at a job; the fields of `status.json`."""

    state: str
    """"planning", "starting", "running", "draining", "finished", "stopped", "failed", or "interrupted"
    where the driver went without a word."""
    started: str
    """UTC, ISO 8601."""
    updated: str
    units_done: int
    units_total: int
    sequences: int
    tokens: int
    """Tokens of the stored sequences, prompts included."""
    rows: int
    """Label rows."""
    bytes: int
    rejects: int
    rejects_by_kind: dict[str, int]
    filtered: dict[str, int]
    """Responses that each filter found, dropped or flagged, in this run."""
    tokens_per_second: float
    """Over the last half minute."""
    bytes_per_token: float
    """Stored bytes per label row."""
    seconds_left: float | None
    workers: list[dict[str, Any]]
    failures: int
    failures_by_kind: dict[str, int]
    causes: list[str]
    """The latest failures, in words."""
    queue_depth: int
    """Units leased out."""
    cost: dict[str, Any] | None
    engine_sec: float
    """Time that this run's engines took, summed over workers."""
    own_sec: float
    """Time around them: reading, filtering, encoding, committing (beside the engine's next unit)."""
    message: str

    def as_json(self) -> str:
        return json.dumps(asdict(self))


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

    def count_result(self, result: UnitResult) -> None:
        """A unit committed in this run, for the first time."""
        assert result.entry is not None
        self.count_stored(result.entry)
        self.units_of_run += 1
        self.tokens_of_run += result.entry.num_tokens
        self.engine_sec += result.engine_sec
        self.own_sec += result.own_sec
        self.rejects_by_kind.update(result.rejects_by_kind)
        self.filtered.update(result.filtered)

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
        """None before the rate is known."""
        rate = self.tokens_per_second
        if not rate or not self.units_total:
            return None
        if self.units_done:
            tokens_left = self.tokens / self.units_done * (self.units_total - self.units_done)
        else:
            tokens_left = self.tokens_total
        return tokens_left / rate


def snapshot(
    tally: Tally,
    *,
    state: str,
    started: str,
    workers: list[dict[str, Any]],
    queue_depth: int,
    cost: dict[str, Any] | None,
    message: str,
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
        workers=workers,
        failures=sum(tally.failures_by_kind.values()),
        failures_by_kind=dict(tally.failures_by_kind),
        causes=list(tally.causes),
        queue_depth=queue_depth,
        cost=cost,
        engine_sec=round(tally.engine_sec, 3),
        own_sec=round(tally.own_sec, 3),
        message=message,
    )


def read_status(uri: str, storage_options: Mapping[str, Any] | None = None) -> JobStatus:
    """The status of any store: the driver's last word, with the counts of what is committed by now.

    Raises StoreNotFoundError where no job has begun. A store without a labeling job (merged, imported)
    gets a status made from its shards alone.
    """
    objects = Objects(uri, storage_options)
    try:
        said = JobStatus(**json.loads(objects.get(STATUS_NAME)))
    except ObjectNotFoundError:
        said = None
    if said is not None and not objects.exists("manifest.json"):
        return _with_truth(said, objects, None)
    return _with_truth(said, objects, LogitStore.open(uri, storage_options=storage_options, writing=True))


def _with_truth(said: JobStatus | None, objects: Objects, store: LogitStore | None) -> JobStatus:
    tally = Tally()
    if store is not None:
        for entry in store.shards():
            tally.count_stored(entry)
        tally.rejects_by_kind.update(reject.kind for reject in store.rejects())
    totals = Plan(objects).totals()
    if totals is not None:
        tally.rejects_by_kind.update(totals.rejects_by_kind)
    tally.units_total = totals.num_units if totals is not None else tally.units_done
    if said is None:
        done = tally.units_done == tally.units_total
        return snapshot(
            tally,
            state="finished" if done else "stopped",
            started="",
            workers=[],
            queue_depth=0,
            cost=None,
            message="",
        )
    record = asdict(said)
    counted = snapshot(
        tally, state=said.state, started=said.started, workers=[], queue_depth=0, cost=None, message=""
    )
    for name in ("units_done", "sequences", "tokens", "rows", "bytes", "bytes_per_token"):
        record[name] = getattr(counted, name)
    for name in ("rejects", "rejects_by_kind"):
        record[name] = getattr(counted, name)
    if said.state in ACTIVE_STATES and not _driver_lives(objects, said):
        record["state"] = "interrupted"
        record["message"] = "the driver is gone; run the same command again to go on"
        record["workers"], record["queue_depth"] = [], 0
        record["tokens_per_second"], record["seconds_left"] = 0.0, None
    return JobStatus(**record)


def _driver_lives(objects: Objects, said: JobStatus) -> bool:
    """As far as can be told: its process on this machine, else how long ago it said something."""
    holder = present_holder(objects)
    if holder is None:
        return False
    if holder.is_on_this_machine:
        return holder.is_running
    silent_sec = time.time() - datetime.fromisoformat(said.updated).timestamp()
    return silent_sec < 2 * holder.renew_sec


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
