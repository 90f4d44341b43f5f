"""Bytes per token and what they bring back, by K, layout and column, with the gain and cost of codebooks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.labels.label_sources import LabelSource, label_sources
from benchmarks.report.results import Cell, Figure, Result, ResultTable, publish
from benchmarks.sizes.layouts import COLUMN_PARTS, PLAIN_LAYOUTS
from benchmarks.sizes.storage_fidelity import (
    PREFIX_TOP_K,
    TEMPERATURES,
    Fidelity,
    interpolated_fidelity,
    layout_fidelity,
    prefix_fidelity,
)
from benchmarks.sizes.storage_plots import draw
from benchmarks.sizes.storage_sizes import CodebookPoint, Sizes, codebook_curve, measure_sizes
from logitstore.codec.codebook_training import train_codebooks
from logitstore.common.options import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folds",
        type=positive,
        default=4,
        help="parts of the documents, each coded with codebooks of the others (default 4)",
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
        if interpolated := interpolated_fidelity(largest):
            fidelities.append((whole.name, largest.spec.top_k, interpolated))
        curves[whole.name] = codebook_curve(largest)
    publish(_result(args, sources, sizes, fidelities, curves), args.out, quiet=args.quiet)
    return 0


def _less(saved: float) -> str:
    return f"{abs(saved):.0%} {'less' if saved >= 0 else 'more'}"


def _result(
    args: argparse.Namespace,
    sources: Sequence[LabelSource],
    sizes: Sequence[Sizes],
    fidelities: Sequence[tuple[str, int, Fidelity]],
    curves: dict[str, list[CodebookPoint]],
) -> Result:
    largest = max((one for one in sizes if one.source == sources[0].name), key=lambda one: one.top_k)
    saved, saved_of_tuned = (1 - largest.needed / largest.plain[layout.name] for layout in PLAIN_LAYOUTS[:2])
    return Result.of(
        "storage",
        meaning=f"A row of K={largest.top_k} takes {largest.needed:.0f} B, {_less(saved)} than plain "
        f"Parquet and {_less(saved_of_tuned)} than tuned; tokens, temperatures and exact tails are "
        f"{largest.file - largest.needed:.0f} B more.",
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
        plots=draw(args.out, sizes, fidelities, curves),
        notes=[
            *(f"{source.name}: {source.num_rows:,} label rows, {source.origin}." for source in sources),
            "Shard file and its columns: codebooks trained on other documents "
            f"({2 if args.quick else args.folds}-fold), the file of the codebooks left out.",
            "With own codebooks: ids, values and normaliser, codebooks trained on the same rows and counted.",
            "Plain layouts hold ids, values and a normaliser; JSONL and Megatron-LM's, log-probabilities.",
            "Plain Parquet: pyarrow's defaults and zstd. Tuned: byte stream split, no dictionaries, zstd 9.",
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
            "mass_bytes": one.columns["other temperatures and tails"],
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
        better = "lower" if found.slug in ("this", "prefix", "interpolated") else "neither"
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
