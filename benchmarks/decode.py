"""Label rows decoded and encoded per second on one core, against plain Parquet in the same run."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from benchmarks.captures import SAMPLE, encode, from_parquet, load_sequences, to_parquet
from benchmarks.plots import plot
from benchmarks.results import Figure, Result, publish
from logitstore.codebook_training import train_codebooks
from logitstore.shard import ShardReader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, default=9, help="reads of each layout, in turns")


def run(args: argparse.Namespace) -> int:
    source = Path(args.input) if args.input else SAMPLE
    top_ks = args.top_k or ([16, 64] if args.quick else [16, 32, 64, 128])
    repetitions = 3 if args.quick else args.repetitions
    rows: list[list[float]] = []
    figures: list[Figure] = []
    for top_k in top_ks:
        rates = _rates(source, top_k, repetitions)
        ratios = [ours / plain for ours, plain in zip(rates["decode"], rates["parquet"], strict=True)]
        ratio = statistics.median(ratios)
        rows.append([top_k, *(statistics.median(rates[name]) for name in ("decode", "parquet")), ratio])
        rows[-1].append(statistics.median(rates["encode"]))
        figures += [
            Figure.of(f"tokens_per_sec_k{top_k}", rates["decode"], "tokens/s", better="higher"),
            Figure.of(f"parquet_tokens_per_sec_k{top_k}", rates["parquet"], "tokens/s"),
            Figure.of(f"encode_tokens_per_sec_k{top_k}", rates["encode"], "tokens/s", better="higher"),
            Figure.of(f"decode_over_parquet_k{top_k}", ratios, "", is_ratio=True, better="higher"),
        ]
    args.out.mkdir(parents=True, exist_ok=True)
    with plot(
        args.out / "decode.svg", "Decoding on one core", "K entries stored", "tokens per second"
    ) as axes:
        axes.set_yscale("log")
        axes.plot([row[0] for row in rows], [row[1] for row in rows], marker="o", label="this format")
        axes.plot([row[0] for row in rows], [row[2] for row in rows], marker="o", label="plain Parquet, zstd")
    publish(
        Result.of(
            "decode",
            meaning="reading labels back costs a training loop little",
            columns=("K", "decode, tokens/s", "plain Parquet, tokens/s", "ratio", "encode, tokens/s"),
            rows=rows,
            figures=figures,
            plots=["decode.svg"],
            notes=(
                "Processor seconds of one thread, so that a busy machine counts less; readers take turns.",
                "Ours gives LabelRows (fp32 logits, ids, tails), checksums verified; Parquet gives ids,"
                " fp16 gaps and a normaliser.",
            ),
            quick=args.quick,
            details={"input": source.name},
        ),
        args.out,
        quiet=args.quiet,
    )
    return 0


def _rates(source: Path, top_k: int, repetitions: int) -> dict[str, list[float]]:
    """Rows per second of each repetition."""
    labels, sequences = load_sequences(source, top_k)
    num_rows = sum(sequence.rows.num_rows for sequence in sequences)
    books = train_codebooks((sequence.rows for sequence in sequences), labels)
    data, parquet = encode(labels, sequences, books), to_parquet(sequences)

    def decode() -> None:
        reader = ShardReader(pa.BufferReader(data), labels, books)
        for block in range(reader.num_blocks):
            reader.read_block(block)

    calls: dict[str, Callable[[], object]] = {
        "decode": decode,
        "parquet": lambda: from_parquet(parquet, top_k),
        "encode": lambda: encode(labels, sequences, books),
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if repetition:  # the first of each warms up
                rates[name].append(num_rows / (time.process_time() - start))
    return rates
