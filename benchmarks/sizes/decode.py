"""Label rows decoded and encoded per second on one core, against Parquet in one run: plain, tuned for size,
and tuned for reading."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from benchmarks.labels.label_sources import LabelSource, label_sources
from benchmarks.report.plots import plot
from benchmarks.report.results import Cell, Figure, Result, publish
from benchmarks.sizes.layouts import (
    Entries,
    encode_shard,
    from_fixed_parquet,
    from_parquet,
    to_fixed_parquet,
    to_parquet,
    to_tuned_parquet,
)
from logitstore.codec.codebook_training import train_codebooks
from logitstore.codec.loops import use_compiled_loops
from logitstore.common.options import positive
from logitstore.shard.reader import ShardReader

MIN_SECONDS = 0.05
"""A timed call repeats its work until it has taken so long, so that the clock's grain does not show."""

PARQUETS = {"parquet": "plain Parquet", "tuned_parquet": "small Parquet", "fixed_parquet": "fast Parquet"}
"""By the name in figures, what people read."""
COLUMNS = (
    "labels", "K", "decode, rows/s",
    *(column for name in PARQUETS.values() for column in (f"{name}, rows/s", "ratio")),
    "encode, rows/s", "ours, B/row", "fast Parquet, B/row",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rates:
    """Rows per second of one source at one K, by repetition."""

    source: str
    top_k: int
    samples: dict[str, list[float]]
    """By "decode", the names of `PARQUETS`, and "encode"."""
    bytes_per_row: dict[str, float]
    """By "decode" and "fixed_parquet"."""

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def over(self, name: str) -> list[float]:
        """Decoding against another layout, read right after it."""
        pairs = zip(self.samples["decode"], self.samples[name], strict=True)
        return [ours / theirs for ours, theirs in pairs]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repetitions", type=positive, help="reads of each layout, in turns (default 9, quick 5)"
    )


def run(args: argparse.Namespace) -> int:
    repetitions = args.repetitions or (5 if args.quick else 9)
    compiled = use_compiled_loops()
    sources = list(label_sources(args))
    measured = [measure_rates(source.cut(top_k), repetitions) for source in sources for top_k in args.top_k]
    _draw(args.out / "decode.svg", [rates for rates in measured if rates.source == sources[0].name])
    last = measured[-1]
    over_plain, over_small, over_fast = (statistics.median(last.over(name)) for name in PARQUETS)
    result = Result.of(
        "decode",
        meaning=f"At K={last.top_k} one core reads {last.median('decode'):,.0f} rows/s back, with checksums, "
        f"tails and normalisers: {over_plain:.1f} times as fast as plain Parquet, {over_small:.1f} times as "
        f"fast as Parquet tuned for size, {over_fast:.1f} times as fast as Parquet tuned for reading.",
        columns=COLUMNS,
        rows=[_row(rates) for rates in measured],
        figures=[figure for rates in measured for figure in _figures(rates)],
        plots=["decode.svg"],
        notes=(
            *(f"{source.name}: {source.num_rows:,} label rows, {source.origin}." for source in sources),
            "Processor seconds of one thread, so that a busy machine counts less; layouts take turns.",
            "Ours gives LabelRows (fp32 logits, ids, tails) with checksums verified, decoded by "
            f"{'numba (extras fast and train)' if compiled else 'numpy alone, without numba'}; Parquet gives "
            "ids, fp16 gaps and a normaliser.",
            "One shard is read as a whole: of few rows its opening is the larger part.",
            "Plain Parquet: pyarrow's defaults and zstd. Small: byte stream split, no dictionaries, zstd 9.",
            "Fast: a row's ids and its gaps are one value of fixed size each, LZ4, no dictionaries.",
        ),
        quick=args.quick,
    )
    publish(result, args.out, quiet=args.quiet)
    return 0


def _row(rates: Rates) -> tuple[Cell, ...]:
    cells: list[Cell] = [rates.source, rates.top_k, rates.median("decode")]
    for name in PARQUETS:
        cells += [rates.median(name), statistics.median(rates.over(name))]
    return (*cells, rates.median("encode"), *rates.bytes_per_row.values())


def _figures(rates: Rates) -> list[Figure]:
    start, end, samples = rates.source, f"k{rates.top_k}", rates.samples
    figures = [
        Figure.of(f"{start}_rows_per_sec_{end}", samples["decode"], "rows/s", better="higher"),
        Figure.of(f"{start}_encode_rows_per_sec_{end}", samples["encode"], "rows/s", better="higher"),
    ]
    figures += [
        Figure.of(f"{start}_{name}_bytes_per_row_{end}", [size], "B/row")
        for name, size in rates.bytes_per_row.items()
    ]
    for name in PARQUETS:
        ratios = rates.over(name)
        figures += [
            Figure.of(f"{start}_{name}_rows_per_sec_{end}", samples[name], "rows/s"),
            Figure.of(f"{start}_over_{name}_{end}", ratios, "", is_ratio=True, better="higher"),
        ]
    return figures


def _draw(path: Path, measured: Sequence[Rates]) -> None:
    ks = [rates.top_k for rates in measured]
    with plot(path, "Rows read back on one core", "K entries stored", "thousand rows per second") as axes:
        for name, label in {"decode": "this format", **PARQUETS}.items():
            axes.plot(ks, [rates.median(name) / 1000 for rates in measured], marker="o", label=label)
        axes.set_xticks(ks)
        axes.set_ylim(bottom=0)


def measure_rates(source: LabelSource, repetitions: int) -> Rates:
    spec, sequences = source.spec, source.sequences
    books = train_codebooks((sequence.rows for sequence in sequences), spec)
    data, entries = encode_shard(spec, sequences, books), Entries.of(sequences)
    parquet, tuned_parquet, fixed_parquet = (
        write(entries) for write in (to_parquet, to_tuned_parquet, to_fixed_parquet)
    )

    def decode() -> None:
        reader = ShardReader(pa.BufferReader(data), spec, books)
        for block in range(reader.num_blocks):
            reader.read_block(block)

    calls: dict[str, Callable[[], object]] = {
        "decode": decode,
        "parquet": lambda: from_parquet(parquet, spec.top_k),
        "tuned_parquet": lambda: from_parquet(tuned_parquet, spec.top_k),
        "fixed_parquet": lambda: from_fixed_parquet(fixed_parquet, entries),
        "encode": lambda: encode_shard(spec, sequences, books),
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            rate = source.num_rows / _seconds(call)
            if repetition:  # the first of each warms up
                samples[name].append(rate)
    sizes = {"decode": data, "fixed_parquet": fixed_parquet}
    return Rates(
        source.name, spec.top_k, samples, {name: len(one) / source.num_rows for name, one in sizes.items()}
    )


def _seconds(call: Callable[[], object]) -> float:
    """Processor seconds of one call, averaged over as many as fill MIN_SECONDS."""
    start, count = time.process_time(), 0
    while count == 0 or time.process_time() - start < MIN_SECONDS:
        call()
        count += 1
    return (time.process_time() - start) / count
