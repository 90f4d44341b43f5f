"""What grows with the size of a job, and how fast: units, shards, rows and workers.

Does committing and opening a store stay cheap as its units grow in number? Does a row cost the same in many
shards as in one, and in a small shard as in a large one? How many workers can one driver feed?
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.jobs.made_up_labels import empty_store, made_up_sequence
from benchmarks.jobs.scale_workers import SECONDS_PER_TOKEN, feed, schedule
from benchmarks.report.plots import plot
from benchmarks.report.results import Figure, Result, ResultTable, publish, time_calls
from logitstore.store import LogitStore

SEQUENCE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that are measured."""

    units: tuple[int, ...]
    rows_to_split: int
    shards: tuple[int, ...]
    """Into so many shards the rows are split."""
    shard_rows: tuple[int, ...]
    scheduled_workers: tuple[int, ...]
    scheduled_units: int
    actors: tuple[int, ...]
    """Actors of real jobs."""


FULL = Sizes(
    units=(500, 2_000, 6_000),
    rows_to_split=16_384,
    shards=(1, 16, 256),
    shard_rows=(256, 4_096, 65_536),
    scheduled_workers=(1, 16, 256, 2_048),
    scheduled_units=200_000,
    actors=(1, 2, 4, 8),
)
QUICK = Sizes(
    units=(250, 750),
    rows_to_split=4_096,
    shards=(1, 64),
    shard_rows=(256, 4_096),
    scheduled_workers=(1, 256),
    scheduled_units=20_000,
    actors=(1, 4),
)


@dataclass(frozen=True, slots=True)
class UnitTimes:
    """A store of so many small units."""

    count: int
    commit_ms: float
    """Time of one unit, its shard coded and written."""
    open_ms: float
    """Before compaction: every commit record is read."""
    compacted_ms: float
    index_bytes: float
    """Per unit."""


@dataclass(frozen=True, slots=True)
class RowTimes:
    """A store of so many rows in so many shards, per row."""

    shards: int
    rows: int
    write_us: float
    read_us: float
    file_bytes: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beside what every measurement takes; the labels are made up, so no model is needed."""


def run(args: argparse.Namespace) -> int:
    plan, rng = QUICK if args.quick else FULL, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        units = [_measure_units(folder, count, rng) for count in plan.units]
        split = [_measure_rows(folder, count, plan.rows_to_split, rng) for count in plan.shards]
        sizes = [_measure_rows(folder, 1, count, rng) for count in plan.shard_rows]
        scheduled = [(count, schedule(count, plan.scheduled_units)) for count in plan.scheduled_workers]
        fed = [(count, feed(count, folder)) for count in plan.actors]
    publish(_result(args, plan, units, split, sizes, scheduled, fed), args.out, quiet=args.quiet)
    return 0


def _result(
    args: argparse.Namespace,
    plan: Sizes,
    units: list[UnitTimes],
    split: list[RowTimes],
    sizes: list[RowTimes],
    scheduled: list[tuple[int, float]],
    fed: list[tuple[int, float]],
) -> Result:
    efficiency = [rate / count / fed[0][1] * fed[0][0] for count, rate in fed]
    growth = units[-1].commit_ms / units[0].commit_ms
    return Result.of(
        "scale",
        meaning=f"A unit costs {growth:.2f} times as much in a store of {units[-1].count:,} as in one of "
        f"{units[0].count:,}; one driver keeps {fed[-1][0]} stand-in workers busy, with "
        f"{fed[-1][1] / fed[0][1]:.1f} times the work of one.",
        columns=("units in the store", "commit of one, ms", "open, ms", "compacted, ms", "index, B/unit"),
        rows=[(one.count, one.commit_ms, one.open_ms, one.compacted_ms, one.index_bytes) for one in units],
        more_tables=[
            _rows_table(f"The same {plan.rows_to_split:,} rows in more shards", split),
            _rows_table("More rows in one shard", sizes),
            ResultTable.of(
                "The scheduler alone", ("workers", "units leased and settled per second"), scheduled
            ),
            ResultTable.of(
                "A real job with the stand-in teacher",
                ("workers", "rows/s of all", "share of the rate of one, per worker"),
                [(count, rate, share) for (count, rate), share in zip(fed, efficiency, strict=True)],
            ),
        ],
        figures=[
            Figure.of("commit_growth", growth, ""),
            Figure.of("open_us_per_unit_compacted", 1000 * units[-1].compacted_ms / units[-1].count, "us"),
            Figure.of("open_speedup_by_compaction", units[-1].open_ms / units[-1].compacted_ms, ""),
            Figure.of("index_bytes_per_unit", units[-1].index_bytes, "B", is_ratio=True, better="lower"),
            Figure.of(
                "bytes_growth_by_shards", split[-1].file_bytes / split[0].file_bytes, "",
                is_ratio=True, better="lower",
            ),
            Figure.of("units_per_sec_scheduled", scheduled[-1][1], "units/s"),
            Figure.of("worker_efficiency", efficiency[-1], "", is_ratio=True, better="higher"),
        ],
        plots=_plots(args.out, units, fed),
        notes=[
            "Local disk and made-up labels, K=8; commit of a unit includes coding and writing its shard.",
            f"Scheduling leases and settles {plan.scheduled_units:,} units, without Ray.",
            "The real job: Ray actors that wait "
            f"{1000 * SECONDS_PER_TOKEN:g} ms a token as an engine would, while all of them work.",
        ],
        quick=args.quick,
    )  # fmt: skip


def _rows_table(title: str, measured: list[RowTimes]) -> ResultTable:
    columns = ("shards", "rows in all", "write, us/row", "read, us/row", "file, B/row")
    rows = [(one.shards, one.rows, one.write_us, one.read_us, one.file_bytes) for one in measured]
    return ResultTable.of(title, columns, rows)


def _plots(out: Path, units: list[UnitTimes], fed: list[tuple[int, float]]) -> list[str]:
    with plot(
        out / "scale-open.svg", "Time to open a store by its units", "units in the store", "time to open, ms"
    ) as axes:
        counts = [one.count for one in units]
        axes.loglog(counts, [one.open_ms for one in units], marker="o", label="commit records")
        axes.loglog(counts, [one.compacted_ms for one in units], marker="o", label="compacted")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.set_xticks([], minor=True)
    with plot(
        out / "scale-workers.svg",
        "Rows labeled by one driver's stand-in workers",
        "workers",
        "label rows per second",
    ) as axes:
        counts = [count for count, _ in fed]
        axes.plot(counts, [rate for _, rate in fed], marker="o", label="measured")
        ideal = [fed[0][1] / fed[0][0] * count for count in counts]
        axes.plot(counts, ideal, linestyle=":", color="gray", label="each as fast as one alone")
        axes.set_xticks(counts)
        axes.set_ylim(bottom=0)
    return ["scale-open.svg", "scale-workers.svg"]


def _measure_units(folder: Path, count: int, rng: np.random.Generator) -> UnitTimes:
    store = empty_store(folder / f"units-{count}")
    sequence = made_up_sequence("record", 4, rng)
    started = time.perf_counter()
    for index in range(count):
        store.commit_unit(f"unit-{index:08d}", index, [sequence], seconds=1.0, worker="worker")
    commit_ms = 1000 * (time.perf_counter() - started) / count
    before_ms = _open_ms(store.uri)
    store.compact()
    after_ms = _open_ms(store.uri)
    index_bytes = sum(file.stat().st_size for file in Path(store.uri).glob("index*/**/*") if file.is_file())
    return UnitTimes(count, commit_ms, before_ms, after_ms, index_bytes / count)


def _open_ms(uri: str) -> float:
    """Milliseconds until a new reader knows all of a store's shards; the better of two."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        LogitStore.open(uri).shards()
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds)


def _measure_rows(folder: Path, num_shards: int, num_rows: int, rng: np.random.Generator) -> RowTimes:
    """Write rows into shards of one size and read the store."""
    store = empty_store(folder / f"rows-{num_shards}-{num_rows}")
    sequences = [
        made_up_sequence(f"record-{i}", SEQUENCE_ROWS, rng) for i in range(num_rows // SEQUENCE_ROWS)
    ]
    per_shard = len(sequences) // num_shards
    started = time.perf_counter()
    for index in range(num_shards):
        unit = sequences[index * per_shard : (index + 1) * per_shard]
        store.commit_unit(f"unit-{index}", index, unit, seconds=1.0, worker="worker")
    write_sec = time.perf_counter() - started
    read_sec = min(time_calls(lambda: list(store.iter_sequences()), repetitions=3))
    num_bytes = sum(entry.num_bytes for entry in store.shards())
    return RowTimes(
        shards=num_shards,
        rows=num_rows,
        write_us=1e6 * write_sec / num_rows,
        read_us=1e6 * read_sec / num_rows,
        file_bytes=num_bytes / num_rows,
    )
