"""Bytes per token by K: this format with and without its codebooks in the count, and plain layouts."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.captures import SAMPLE, encode, layout_bytes, load_sequences, needed_bytes
from benchmarks.plots import plot
from benchmarks.results import Figure, Result, publish
from logitstore.codebook_training import train_codebooks
from logitstore.codebooks import CodebookSet
from logitstore.manifest import LabelSpec
from logitstore.records import LabeledSequence

MANY_ROWS = 10_000_000
"""Rows that a shared codebook set is trained for, where the store is not its only user."""
LAYOUTS = ("plain Parquet, zstd", "JSONL, 4 decimals", "raw numpy, i32 + f16", "torch.save, zstd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folds", type=int, default=4, help="parts of the documents to train codebooks on others"
    )


def run(args: argparse.Namespace) -> int:
    source = Path(args.input) if args.input else SAMPLE
    top_ks = args.top_k or ([16, 64] if args.quick else [16, 32, 64, 128])
    folds = 2 if args.quick else args.folds
    rows: list[list[float]] = []
    figures: list[Figure] = []
    for top_k in top_ks:
        labels, sequences = load_sequences(source, top_k)
        num_rows = sum(sequence.rows.num_rows for sequence in sequences)
        books = train_codebooks((sequence.rows for sequence in sequences), labels)
        data = encode(labels, sequences, books)
        whole = (needed_bytes(data, labels, books) + len(books.to_bytes())) / num_rows
        others = _trained_on_others(labels, sequences, folds)
        layouts = layout_bytes(sequences)
        rows.append([top_k, whole, others, len(data) / num_rows, books.num_codebooks])
        rows[-1] += [layouts[name] / num_rows for name in LAYOUTS]
        for name, value in (
            ("whole_store", whole),
            ("bytes_per_token", others),
            ("shard_file", len(data) / num_rows),
        ):
            figures.append(Figure.of(f"{name}_k{top_k}", value, "B/token", is_ratio=True, better="lower"))
    curve = _curve(source, max(top_ks), [1, 4, 16] if args.quick else [1, 4, 16, 32, 64])
    args.out.mkdir(parents=True, exist_ok=True)
    plots = _plots(args.out, rows, curve)
    publish(
        Result.of(
            "storage",
            meaning="lossless fp16 labels with a normaliser take this much; the tail costs a few bytes more",
            columns=(
                "K",
                "whole store, B",
                "other documents' codebooks, B",
                "shard file, B",
                "codebooks",
                *LAYOUTS,
            ),
            rows=rows,
            figures=figures,
            plots=plots,
            notes=(
                "whole store: ids, values, T=1 normaliser, framing and the codebooks trained on it.",
                f"other documents: without the file, {folds}-fold: each part coded by the others' codebooks.",
                "shard file: with tokens, three tails, all normalisers and the actual tokens' values.",
            ),
            quick=args.quick,
            details={"input": source.name, "rows": num_rows, "codebook_curve": curve},
        ),
        args.out,
        quiet=args.quiet,
    )
    return 0


def _trained_on_others(labels: LabelSpec, sequences: Sequence[LabeledSequence], folds: int) -> float:
    """Bytes per token of each fold's shard, with codebooks trained on the sequences outside it."""
    num_bytes = num_rows = 0
    for fold in range(folds):
        inside = [sequence for place, sequence in enumerate(sequences) if place % folds == fold]
        outside = [sequence for place, sequence in enumerate(sequences) if place % folds != fold]
        books = train_codebooks((sequence.rows for sequence in outside), labels, expected_rows=MANY_ROWS)
        num_bytes += needed_bytes(encode(labels, inside, books), labels, books)
        num_rows += sum(sequence.rows.num_rows for sequence in inside)
    return num_bytes / num_rows


def _curve(source: Path, top_k: int, numbers: Sequence[int]) -> list[dict[str, float]]:
    """Seconds of training and bytes per token by the largest number of codebooks, on the other half."""
    labels, sequences = load_sequences(source, top_k)
    points = []
    for number in numbers:
        start = time.perf_counter()
        books: CodebookSet = train_codebooks(
            (sequence.rows for sequence in sequences[::2]),
            labels,
            max_codebooks=number,
            expected_rows=MANY_ROWS,
        )
        seconds = time.perf_counter() - start
        held_out = sequences[1::2]
        num_rows = sum(sequence.rows.num_rows for sequence in held_out)
        size = needed_bytes(encode(labels, held_out, books), labels, books) / num_rows
        points.append({"codebooks": books.num_codebooks, "seconds": seconds, "bytes_per_token": size})
    return points


def _plots(out: Path, rows: Sequence[Sequence[float]], curve: list[dict[str, float]]) -> list[str]:
    names = ["storage-bytes.svg", "storage-codebooks.svg"]
    with plot(
        out / names[0], "A lossless row against plain layouts", "K entries stored", "B per token"
    ) as axes:
        ks = [row[0] for row in rows]
        for place, label in ((2, "this format"), (5, LAYOUTS[0]), (7, LAYOUTS[2]), (8, LAYOUTS[3])):
            axes.plot(ks, [row[place] for row in rows], marker="o", label=label)
    with plot(
        out / names[1], "What more codebooks gain and cost", "seconds of training", "B per token"
    ) as axes:
        axes.plot([p["seconds"] for p in curve], [p["bytes_per_token"] for p in curve], marker="o")
        for point in curve:
            axes.annotate(f"{point['codebooks']:.0f}", (point["seconds"], point["bytes_per_token"]))
    return names
