"""The demo's report: one HTML file without scripts of its own, readable on a phone and in the dark.

Every value from data goes through the template's escaping. The sequences are the store viewer's page in
a sandboxed frame, so what a prompt holds can reach neither the report nor the network.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.demo.svg_chart import Bar, Series, bar_chart, line_chart
from logitstore.manifest.fields import Manifest, ShardEntry
from logitstore.store import LogitStore
from logitstore.tools.inspection import MassAtK, inspect_store

PLAIN_BYTES_PER_ENTRY = 6
"""A float16 value and a 32-bit id, as a plain array would hold each entry."""
SEQUENCES_PER_STORE = 12
INSPECTED_ROWS = 100_000
"""Rows of a store that the mass by K is a mean over, at the most."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the demo, as it ran."""

    name: str
    command: str
    seconds: float


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """When a worker was busy with a unit; seconds since the epoch."""

    worker: str
    start: float
    end: float
    num_rows: int


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """What a labeled store holds, added up over its shards."""

    uri: str
    manifest: Manifest
    num_sequences: int
    num_rows: int
    num_bytes: int
    num_rejects: int
    shards: tuple[WrittenShard, ...]
    """In order of their end."""
    mass_by_k: tuple[MassAtK, ...]
    """What fewer entries would keep, ascending in K."""

    @property
    def bytes_per_row(self) -> float:
        return self.num_bytes / max(self.num_rows, 1)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out rows: the student against the teacher's labels."""

    kl: float
    """KL(teacher, student) per row in nats, over the stored entries and the tail."""
    cross_entropy: float
    """Of the actual tokens, nats."""
    top1_agreement: float
    """Share of rows in which both rank the same token first."""


@dataclass(frozen=True, slots=True)
class Training:
    """What became of the student."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    before: Evaluation
    after: Evaluation
    num_parameters: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the page says."""

    stores: tuple[StoreSummary, ...]
    training: Training
    stages: tuple[Stage, ...]
    hardware: dict[str, str]
    versions: dict[str, str]
    date: str


def summarise_store(uri: str) -> StoreSummary:
    """Add up a store's index, and read an even choice of its shards for the mass by K."""
    store = LogitStore.open(uri)
    entries = list(store.shards())
    return StoreSummary(
        uri=uri,
        manifest=store.manifest,
        num_sequences=sum(entry.num_sequences for entry in entries),
        num_rows=sum(entry.num_rows for entry in entries),
        num_bytes=sum(entry.num_bytes for entry in entries),
        num_rejects=sum(entry.num_rejects for entry in entries),
        shards=_written_shards(entries),
        mass_by_k=tuple(inspect_store(store, max_rows=INSPECTED_ROWS).mass_by_k),
    )


def _written_shards(entries: Sequence[ShardEntry]) -> tuple[WrittenShard, ...]:
    shards = [
        WrittenShard(entry.worker, entry.committed_sec - entry.seconds, entry.committed_sec, entry.num_rows)
        for entry in entries
        if entry.name and entry.committed_sec
    ]
    return tuple(sorted(shards, key=lambda shard: shard.end))


def labeling_rates(shards: Sequence[WrittenShard]) -> list[Series]:
    """Rows per second of each worker over time since the first start, as steps; a gap between units is 0."""
    if not shards:
        return []
    origin = min(shard.start for shard in shards)
    by_worker: dict[str, list[WrittenShard]] = defaultdict(list)
    for shard in shards:
        by_worker[shard.worker].append(shard)
    series = []
    for worker, own in sorted(by_worker.items()):
        xs, ys = [0.0], [0.0]
        previous_end = origin
        for shard in own:
            # Units of one worker overlap by the writing of the shard: count each from the last one's end.
            start = max(shard.start, previous_end)
            rate = shard.num_rows / max(shard.end - start, 1e-3)
            xs += [start - origin, start - origin, shard.end - origin, shard.end - origin]
            ys += [0.0, rate, rate, 0.0]
            previous_end = shard.end
        series.append(Series(worker, xs, ys))
    return series


def write_report(report: Report, sequences_page: str, path: Path) -> int:
    """Render the page with the viewer's page of sequences inside; returns its size in bytes."""
    environment = Environment(
        loader=PackageLoader("benchmarks.demo", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    html = environment.get_template("report_template.html").render(
        report=report,
        training=report.training,
        charts=_charts(report),
        total_rows=sum(store.num_rows for store in report.stores),
        total_bytes=sum(store.num_bytes for store in report.stores),
        plain_bytes_per_entry=PLAIN_BYTES_PER_ENTRY,
        sequences_page=sequences_page,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".html.partial")
    partial.write_text(html)
    partial.replace(path)
    return len(html.encode())


def _charts(report: Report) -> dict[str, Markup]:
    """The page's charts by name. They escape what they are given, so they are markup."""
    training, stores = report.training, report.stores
    before, after = training.before, training.after
    bytes_bars = [Bar(_short_name(store), store.bytes_per_row) for store in stores]
    top_k = max(store.manifest.labels.top_k for store in stores)
    bytes_bars.append(Bar("plain arrays", float(top_k * PLAIN_BYTES_PER_ENTRY), color=1))
    charts = {
        "loss": line_chart(
            "training loss over steps", [Series("loss", training.steps, training.losses)], "step", "loss"
        ),
        "student": bar_chart(
            "distance of the student from the teacher",
            [
                Bar("KL", before.kl), Bar("KL", after.kl, color=1),
                Bar("cross-entropy", before.cross_entropy),
                Bar("cross-entropy", after.cross_entropy, color=1),
            ],
            "nats per token",
            ("before", "after training"),
        ),
        "mass": mass_chart(stores[0]),
        "bytes": bar_chart("bytes per label row", bytes_bars, "bytes per token"),
    }  # fmt: skip
    for index, store in enumerate(stores):
        charts[f"rate{index}"] = line_chart(
            "labeling rate over time", labeling_rates(store.shards), "seconds since the first unit began",
            "label rows per second",
        )  # fmt: skip
    return {name: Markup(svg) for name, svg in charts.items()}


def mass_chart(store: StoreSummary) -> str:
    """The mass that the first K entries hold against K, a line per temperature; K on a logarithmic axis."""
    places = [math.log2(at.top_k) for at in store.mass_by_k]
    lines = [
        Series(f"T = {temperature}", places, [at.mass[temperature] for at in store.mass_by_k])
        for temperature in store.mass_by_k[0].mass
    ]
    names = {place: str(at.top_k) for place, at in zip(places, store.mass_by_k, strict=True)}
    return line_chart("the teacher's mass on the first K entries", lines, "K", "mean mass", names)


def _short_name(store: StoreSummary) -> str:
    return store.uri.rstrip("/").rsplit("/", 1)[-1]
