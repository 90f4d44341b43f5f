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

from benchmarks.demo.answers import TEMPERATURE, Answers
from benchmarks.demo.svg_chart import Bar, Series, bar_chart, line_chart
from benchmarks.sizes.layouts import Entries, to_tuned_parquet
from logitstore.common.whole_file import write_whole
from logitstore.manifest.fields import Manifest, ShardEntry
from logitstore.records import LabeledSequence
from logitstore.store import LogitStore
from logitstore.tools.inspection import MassAtK, inspect_store

PARQUET_ROWS = 4096
"""Rows of a store that are written as Parquet to compare with, about."""
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
    parquet_bytes_per_row: float
    """Ids, values and one normaliser of some of its rows in Parquet tuned for them; nothing else."""

    @property
    def bytes_per_row(self) -> float:
        return self.num_bytes / max(self.num_rows, 1)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out rows: the student against the teacher's labels."""

    kl: float
    """KL(teacher, student) per row in nats, over the stored entries and the tail."""
    cross_entropy: float
    """Mean cross entropy of the actual tokens, nats."""
    top1_agreement: float
    """Share of rows in which both rank the same token first."""
    accuracy: float
    """Share of rows in which the student's first token is the actual one."""
    calibration_error: float
    """Expected calibration error of its first token."""


@dataclass(frozen=True, slots=True)
class Training:
    """What became of the student."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    before: Evaluation
    after: Evaluation
    num_parameters: int
    seconds: float
    teacher: dict[str, float]
    """The teacher's own figures on the rows of `after`, by the names of Evaluation."""
    curve: tuple[tuple[int, float], ...]
    """(step, KL in nats) of a few held-out sequences during training."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the page says."""

    stores: tuple[StoreSummary, ...]
    training: Training
    text_alone: Training
    """From the same start on the same text, without the teacher's distributions."""
    students: tuple[str, ...]
    """Names of the students that answer, in the order of their answers."""
    answers: tuple[Answers, ...]
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
        parquet_bytes_per_row=_parquet_bytes_per_row(store),
    )


def _parquet_bytes_per_row(store: LogitStore) -> float:
    sequences: list[LabeledSequence] = []
    num_rows = 0
    for sequence in store.iter_sequences():
        sequences.append(sequence)
        num_rows += sequence.rows.num_rows
        if num_rows >= PARQUET_ROWS:
            break
    return len(to_tuned_parquet(Entries.of(sequences))) / num_rows if num_rows else 0.0


def figure_rows(report: Report) -> list[tuple[str, ...]]:
    """Name, and what it is before, with text alone, distilled, and of the teacher."""
    training = report.training
    students = (training.before, report.text_alone.after, training.after)

    def row(title: str, name: str, form: str, teacher: float | None) -> tuple[str, ...]:
        values = [*(getattr(one, name) for one in students), teacher]
        return (title, *("" if value is None else format(value, form) for value in values))

    own = training.teacher.get
    return [
        row("KL(teacher, student), nats", "kl", ".3f", 0.0),
        row("cross-entropy, nats", "cross_entropy", ".3f", own("cross_entropy")),
        row("same first choice as the teacher", "top1_agreement", ".1%", 1.0),
        row("first choice is the actual token", "accuracy", ".1%", own("accuracy")),
        row("calibration error", "calibration_error", ".3f", own("calibration_error")),
    ]


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
        figures=figure_rows(report),
        sequences_page=sequences_page,
        temperature=TEMPERATURE,
        parquet_rows=PARQUET_ROWS,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, html)
    return len(html.encode())


def _charts(report: Report) -> dict[str, Markup]:
    """The page's charts by name. They escape what they are given, so they are markup."""
    training, stores = report.training, report.stores
    bytes_bars = [
        bar
        for store in stores
        for bar in (
            Bar(f"{_short_name(store)}\nstore", store.bytes_per_row),
            Bar(f"{_short_name(store)}\nParquet, tuned", store.parquet_bytes_per_row, color=1),
        )
    ]
    charts = {
        "loss": line_chart(
            "training loss over steps", [Series("loss", training.steps, training.losses)], "step", "loss"
        ),
        "student": line_chart(
            "distance of both students from the teacher over time",
            [_curve("distilled", training), _curve("text alone", report.text_alone)],
            "seconds of training",
            "KL, nats per token",
        ),
        "mass": mass_chart(stores[0]),
        "bytes": bar_chart("bytes per label row", bytes_bars, "bytes per token"),
    }  # fmt: skip
    for index, store in enumerate(stores):
        charts[f"rate{index}"] = line_chart(
            "labeling rate over time", labeling_rates(store.shards), "seconds since the first unit began",
            "label rows per second", filled=True,
        )  # fmt: skip
    return {name: Markup(svg) for name, svg in charts.items()}


def _curve(name: str, training: Training) -> Series:
    """KL over the seconds of training, steps taken as equally long."""
    last = max((step for step, _ in training.curve), default=0) or 1
    seconds = [training.seconds * step / last for step, _ in training.curve]
    return Series(name, seconds, [kl for _, kl in training.curve])


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
