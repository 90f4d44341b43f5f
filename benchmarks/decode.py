"""Label rows decoded and encoded per second on one core, against plain Parquet in the same run."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyarrow as pa

from benchmarks.label_sources import LabelSource, label_sources
from benchmarks.layouts import Entries, encode_shard, from_parquet, to_parquet
from benchmarks.plots import plot
from benchmarks.results import Cell, Figure, Result, publish
from logitstore.codebook_training import train_codebooks
from logitstore.loops import use_compiled_loops
from logitstore.shard import ShardReader

MIN_SECONDS = 0.05
"""A timed call repeats its work until it has taken so long, so that the clock's grain does not show."""

Rates = dict[str, list[float]]
"""Rows per second of each repetition, by "decode", "parquet" and "encode"."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, help="reads of each layout, in turns (default 9, quick 5)")


def run(args: argparse.Namespace) -> int:
    repetitions = args.repetitions or (5 if args.quick else 9)
    use_compiled_loops()
    sources = list(label_sources(args))
    measured = [
        (source.name, top_k, _rates(source.cut(top_k), repetitions))
        for source in sources
        for top_k in args.top_k
    ]
    rows: list[tuple[Cell, ...]] = []
    figures: list[Figure] = []
    for source, top_k, rates in measured:
        ratios = [ours / plain for ours, plain in zip(rates["decode"], rates["parquet"], strict=True)]
        decode, plain, encode = (statistics.median(rates[name]) for name in ("decode", "parquet", "encode"))
        rows.append((source, top_k, decode, plain, statistics.median(ratios), encode))
        figures += [
            Figure.of(f"{source}_rows_per_sec_k{top_k}", rates["decode"], "rows/s", better="higher"),
            Figure.of(f"{source}_parquet_rows_per_sec_k{top_k}", rates["parquet"], "rows/s"),
            Figure.of(f"{source}_encode_rows_per_sec_k{top_k}", rates["encode"], "rows/s", better="higher"),
            Figure.of(f"{source}_over_parquet_k{top_k}", ratios, "", is_ratio=True, better="higher"),
        ]
    with plot(
        args.out / "decode.svg", "Rows read back on one core", "K entries stored", "thousand rows per second"
    ) as axes:
        first = [(k, rates) for source, k, rates in measured if source == sources[0].name]
        for name, label in (("decode", "this format"), ("parquet", "plain Parquet, zstd")):
            medians = [statistics.median(rates[name]) / 1000 for _, rates in first]
            axes.plot([k for k, _ in first], medians, marker="o", label=label)
        axes.set_ylim(bottom=0)
    publish(
        Result.of(
            "decode",
            meaning=f"One core reads {rows[-1][2]:,.0f} rows/s back at K={rows[-1][1]}, {rows[-1][4]:.1f} "
            "times what it reads of plain Parquet, with checksums, tails and normalisers.",
            columns=("labels", "K", "decode, rows/s", "plain Parquet, rows/s", "ratio", "encode, rows/s"),
            rows=rows,
            figures=figures,
            plots=["decode.svg"],
            notes=(
                *(f"{source.name}: {source.num_rows:,} label rows, {source.origin}." for source in sources),
                "Processor seconds of one thread, so that a busy machine counts less; layouts take turns.",
                "Ours gives LabelRows (fp32 logits, ids, tails), checksums verified; Parquet gives ids, fp16 "
                "gaps and a normaliser.",
            ),
            quick=args.quick,
        ),
        args.out,
        quiet=args.quiet,
    )
    return 0


def _rates(source: LabelSource, repetitions: int) -> Rates:
    spec, sequences = source.spec, source.sequences
    books = train_codebooks((sequence.rows for sequence in sequences), spec)
    data, parquet = encode_shard(spec, sequences, books), to_parquet(Entries.of(sequences))

    def decode() -> None:
        reader = ShardReader(pa.BufferReader(data), spec, books)
        for block in range(reader.num_blocks):
            reader.read_block(block)

    calls: dict[str, Callable[[], object]] = {
        "decode": decode,
        "parquet": lambda: from_parquet(parquet, spec.top_k),
        "encode": lambda: encode_shard(spec, sequences, books),
    }
    rates: Rates = {name: [] for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            rate = source.num_rows / _seconds(call)
            if repetition:  # the first of each warms up
                rates[name].append(rate)
    return rates


def _seconds(call: Callable[[], object]) -> float:
    """Processor seconds of one call, averaged over as many as fill MIN_SECONDS."""
    start, count = time.process_time(), 0
    while count == 0 or time.process_time() - start < MIN_SECONDS:
        call()
        count += 1
    return (time.process_time() - start) / count
