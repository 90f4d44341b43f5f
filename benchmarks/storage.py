"""Bytes per token and what they bring back, by K, layout and column, with the gain and cost of codebooks."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.label_sources import LabelSource, label_sources
from benchmarks.layouts import COLUMN_PARTS, GAPS, NEEDED_PARTS, PLAIN_LAYOUTS, column_bytes, encode_shard
from benchmarks.plots import plot
from benchmarks.results import Cell, Figure, Result, ResultTable, publish
from benchmarks.storage_fidelity import (
    OURS,
    PREFIX_TOP_K,
    TEMPERATURES,
    Fidelity,
    layout_fidelity,
    prefix_fidelity,
)
from benchmarks.storage_sizes import MANY_ROWS, Sizes, measure_sizes
from logitstore.codebook_training import train_codebooks

CODEBOOK_NUMBERS = (1, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class CodebookPoint:
    """What so many codebooks are worth to documents that they were not trained on."""

    num_codebooks: int
    train_sec: float
    bytes_per_token: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folds", type=int, default=4, help="parts of the documents to train codebooks on others"
    )


def run(args: argparse.Namespace) -> int:
    sizes: list[Sizes] = []
    fidelities: list[tuple[str, int, Fidelity]] = []
    curves: dict[str, list[CodebookPoint]] = {}
    sources = list(label_sources(args))
    for whole in sources:
        for top_k in args.top_k:
            source = whole.cut(top_k)
            books = train_codebooks((sequence.rows for sequence in source.sequences), source.spec)
            sizes.append(measure_sizes(source, books, 2 if args.quick else args.folds))
            fidelities += [(source.name, top_k, found) for found in layout_fidelity(source, books)]
        largest = whole.cut(max(args.top_k))
        if max(args.top_k) > PREFIX_TOP_K:
            fidelities.append((whole.name, PREFIX_TOP_K, prefix_fidelity(largest, books)))
        curves[whole.name] = _codebook_curve(largest)
    publish(_result(args, sources, sizes, fidelities, curves), args.out, quiet=args.quiet)
    return 0


def _codebook_curve(source: LabelSource) -> list[CodebookPoint]:
    """Trained on half of the documents, measured on the other half."""
    points = []
    held_out = source.sequences[1::2]
    num_rows = sum(sequence.rows.num_rows for sequence in held_out)
    for number in CODEBOOK_NUMBERS:
        start = time.perf_counter()
        books = train_codebooks(
            (sequence.rows for sequence in source.sequences[::2]),
            source.spec,
            max_codebooks=number,
            expected_rows=MANY_ROWS,
        )
        seconds = time.perf_counter() - start
        if points and books.num_codebooks <= points[-1].num_codebooks:
            break  # more do not pay for themselves on so few rows
        sizes = column_bytes(encode_shard(source.spec, held_out, books), source.spec, books)
        needed = sum(sizes[part] for part in NEEDED_PARTS)
        points.append(CodebookPoint(books.num_codebooks, seconds, needed / num_rows))
    return points


def _result(
    args: argparse.Namespace,
    sources: Sequence[LabelSource],
    sizes: Sequence[Sizes],
    fidelities: Sequence[tuple[str, int, Fidelity]],
    curves: dict[str, list[CodebookPoint]],
) -> Result:
    largest = sizes[-1]
    saved = 1 - largest.needed / largest.plain[PLAIN_LAYOUTS[0].name]
    return Result.of(
        "storage",
        meaning=f"A row of K={largest.top_k} takes {largest.needed:.0f} B, {saved:.0%} less than plain "
        f"Parquet, and {largest.file - largest.needed:.0f} B more with tokens, temperatures and exact tails.",
        columns=(
            "labels",
            "K",
            "shard file, B/token",
            "of it ids, values, normaliser",
            "with own codebooks",
            *_plain_names(),
        ),
        rows=[(one.source, one.top_k, one.file, one.needed, one.alone, *one.plain.values()) for one in sizes],
        more_tables=[_column_table(sizes), _fidelity_table(fidelities), _codebook_table(curves)],
        figures=[*_size_figures(sizes), *_fidelity_figures(fidelities), *_codebook_figures(curves)],
        plots=_plots(args.out, sizes, fidelities, curves),
        notes=[
            *(f"{source.name}: {source.num_rows:,} label rows, {source.origin}." for source in sources),
            "Shard file and its columns: codebooks trained on other documents "
            f"({2 if args.quick else args.folds}-fold), the file of the codebooks left out.",
            "With own codebooks: ids, values and normaliser, codebooks trained on the same rows and counted.",
            "Plain layouts hold ids, values and a normaliser; JSONL and Megatron-LM's, log-probabilities.",
            "What the labeler made was rounded to fp16 gaps before, so only the capture shows that rounding.",
        ],
        quick=args.quick,
        details={"rows": {source.name: source.num_rows for source in sources}},
    )


def _plain_names() -> list[str]:
    return [layout.name for layout in PLAIN_LAYOUTS]


def _column_table(sizes: Sequence[Sizes]) -> ResultTable:
    rows = [(one.source, one.top_k, *one.columns.values(), one.file) for one in sizes]
    return ResultTable.of("Bytes per token by column", ("labels", "K", *COLUMN_PARTS, "shard file"), rows)


def _fidelity_table(fidelities: Sequence[tuple[str, int, Fidelity]]) -> ResultTable:
    rows: list[tuple[Cell, ...]] = [
        (
            source, top_k, found.layout, found.mean_error, found.largest_error,
            *(found.kl_by_temperature.get(temperature) for temperature in TEMPERATURES),
        )
        for source, top_k, found in fidelities
    ]  # fmt: skip
    kl = [f"KL at T={temperature:g}, nats" for temperature in TEMPERATURES]
    columns = ("labels", "K", "layout", "mean error of a logprob", "largest error", *kl)
    return ResultTable.of("What is read back, against what was written", columns, rows)


def _codebook_table(curves: dict[str, list[CodebookPoint]]) -> ResultTable:
    rows = [
        (source, point.num_codebooks, point.train_sec, point.bytes_per_token)
        for source, points in curves.items()
        for point in points
    ]
    return ResultTable.of(
        "Codebooks at the largest K, trained on half of the documents and measured on the other",
        ("labels", "codebooks", "training, s", "ids, values, normaliser, B/token"),
        rows,
    )


def _size_figures(sizes: Sequence[Sizes]) -> list[Figure]:
    figures = []
    for one in sizes:
        named = {
            "shard_bytes": one.file,
            "label_bytes": one.needed,
            "own_codebooks_bytes": one.alone,
            "id_bytes": one.columns["ids"],
        }
        for name, value in named.items():
            figures.append(
                Figure.of(
                    f"{one.source}_{name}_k{one.top_k}", value, "B/token", is_ratio=True, better="lower"
                )
            )
        for layout in PLAIN_LAYOUTS:
            name = f"{one.source}_{layout.slug}_bytes_k{one.top_k}"
            figures.append(Figure.of(name, one.plain[layout.name], "B/token", is_ratio=True))
    return figures


def _fidelity_figures(fidelities: Sequence[tuple[str, int, Fidelity]]) -> list[Figure]:
    figures = []
    for source, top_k, found in fidelities:
        better = "lower" if found.slug in ("this", "prefix") else "neither"
        end = f"{found.slug}_k{top_k}"
        for name, value in (("mean_error", found.mean_error), ("largest_error", found.largest_error)):
            figures.append(Figure.of(f"{source}_{name}_{end}", value, "nats", is_ratio=True, better=better))
        for temperature, kl in found.kl_by_temperature.items():
            name = f"{source}_kl_t{temperature:g}_{end}"
            figures.append(Figure.of(name, kl, "nats", is_ratio=True, better=better))
    return figures


def _codebook_figures(curves: dict[str, list[CodebookPoint]]) -> list[Figure]:
    """How many codebooks were used, and what they save of the bytes with one order of the vocabulary."""
    return [
        Figure.of(
            f"{source}_saved_by_codebooks", 1 - points[-1].bytes_per_token / points[0].bytes_per_token, ""
        )
        for source, points in curves.items()
    ]


def _plots(
    out: Path,
    sizes: Sequence[Sizes],
    fidelities: Sequence[tuple[str, int, Fidelity]],
    curves: dict[str, list[CodebookPoint]],
) -> list[str]:
    """Of the first source; the tables have the others."""
    first = sizes[0].source
    sizes = [one for one in sizes if one.source == first]
    ks = [one.top_k for one in sizes]
    with plot(
        out / "storage-bytes.svg", "A row against the layouts in use", "K entries stored", "B per token"
    ) as axes:
        axes.plot(ks, [one.needed for one in sizes], marker="o", label=f"{OURS}: ids, values, normaliser")
        axes.plot(ks, [one.file for one in sizes], marker="o", linestyle="--", label=f"{OURS}: everything")
        for name in _plain_names():
            if not name.startswith("JSONL"):  # seven times as large: it would hide the others
                axes.plot(ks, [one.plain[name] for one in sizes], marker=".", linewidth=1.2, label=name)
    with plot(
        out / "storage-columns.svg", "Where the bytes of a row are", "K entries stored", "B per token"
    ) as axes:
        bottom = [0.0] * len(sizes)
        for part in COLUMN_PARTS:
            axes.bar([str(k) for k in ks], [one.columns[part] for one in sizes], bottom=bottom, label=part)
            bottom = [low + one.columns[part] for low, one in zip(bottom, sizes, strict=True)]
    with plot(
        out / "storage-fidelity.svg", "What is wrong with labels as read, at T=2", "K entries stored",
        "KL to what was written, nats",
    ) as axes:  # fmt: skip
        for slug, label in (("this", f"{OURS}: exact tail"), (GAPS.slug, "plain layouts: renormalised")):
            points = [
                (k, found.kl_by_temperature[2.0])
                for source, k, found in fidelities
                if source == first and found.slug == slug and 2.0 in found.kl_by_temperature
            ]
            axes.plot([k for k, _ in points], [kl for _, kl in points], marker="o", label=label)
        axes.set_yscale("log")
    with plot(
        out / "storage-codebooks.svg",
        "What more codebooks gain and cost",
        "seconds of training",
        "B per token",
    ) as axes:
        for source, points in curves.items():
            axes.plot(
                [p.train_sec for p in points], [p.bytes_per_token for p in points], marker="o", label=source
            )
            for point in points:
                axes.annotate(
                    f"{point.num_codebooks}", (point.train_sec, point.bytes_per_token), (4, 4),
                    textcoords="offset points",
                )  # fmt: skip
        axes.set_ylim(bottom=0)
    return ["storage-bytes.svg", "storage-columns.svg", "storage-fidelity.svg", "storage-codebooks.svg"]
