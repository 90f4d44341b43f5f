"""Prometheus metrics of a job, exported by Ray's own agent on every node's metrics port."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from logitstore.job_objects import JobStatus


class JobMetrics:
    """Gauges of the present state and counters of what was done, all tagged with the store."""

    def __init__(self, store_uri: str) -> None:
        self._tags = {"store": store_uri}
        keys = ("store",)
        self._gauges = {
            "tokens_per_second": Gauge("penumbra_tokens_per_second", "Tokens labeled per second.", keys),
            "bytes_per_token": Gauge("penumbra_bytes_per_token", "Stored bytes per label row.", keys),
            "queue_depth": Gauge("penumbra_leased_units", "Units leased to workers.", keys),
            "units_done": Gauge("penumbra_units_done", "Committed units of the store.", keys),
            "units_total": Gauge("penumbra_units_planned", "Units of the plan.", keys),
            "ready_workers": Gauge("penumbra_ready_workers", "Workers with a loaded teacher.", keys),
        }
        self._tokens = Counter("penumbra_tokens", "Tokens of committed sequences.", keys)
        self._rows = Counter("penumbra_label_rows", "Committed label rows.", keys)
        self._bytes = Counter("penumbra_stored_bytes", "Bytes of committed shards.", keys)
        self._failures = Counter("penumbra_failures", "Failures by kind.", (*keys, "kind"))
        self._rejects = Counter("penumbra_rejects", "Rejected records by kind.", (*keys, "kind"))
        self._seen: dict[tuple[str, str], int] = {}

    def update(self, status: JobStatus) -> None:
        ready = sum(worker.state == "ready" for worker in status.workers)
        for name, gauge in self._gauges.items():
            gauge.set(ready if name == "ready_workers" else getattr(status, name), self._tags)
        self._count(self._tokens, "tokens", status.tokens)
        self._count(self._rows, "rows", status.rows)
        self._count(self._bytes, "bytes", status.bytes)
        self._count_kinds(self._failures, "failures", status.failures_by_kind)
        self._count_kinds(self._rejects, "rejects", status.rejects_by_kind)

    def _count_kinds(self, counter: Counter, name: str, counts: Mapping[str, int]) -> None:
        for kind, count in counts.items():
            self._count(counter, name, count, kind)

    def _count(self, counter: Counter, name: str, value: int, kind: str = "") -> None:
        grown = value - self._seen.get((name, kind), 0)
        if grown > 0:
            self._seen[name, kind] = value
            counter.inc(grown, {**self._tags, "kind": kind} if kind else self._tags)
