"""The plots of `penumbra bench storage`: of its first source, the tables have the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.plots import plot
from benchmarks.sizes.layouts import COLUMN_PARTS, GAPS, PLAIN_LAYOUTS
from benchmarks.sizes.storage_fidelity import OURS, Fidelity
from benchmarks.sizes.storage_sizes import CodebookPoint, Sizes


def draw(
    out: Path,
    sizes: Sequence[Sizes],
    fidelities: Sequence[tuple[str, int, Fidelity]],
    curves: dict[str, list[CodebookPoint]],
) -> list[str]:
    """Write all plots; their file names."""
    first = sizes[0].source
    sizes = [one for one in sizes if one.source == first]
    names = ["storage-bytes.svg", "storage-columns.svg", "storage-fidelity.svg", "storage-codebooks.svg"]
    _bytes(out / names[0], sizes)
    _columns(out / names[1], sizes)
    _fidelity(out / names[2], [(k, found) for source, k, found in fidelities if source == first])
    _codebooks(out / names[3], curves[first])
    return names


def _bytes(path: Path, sizes: Sequence[Sizes]) -> None:
    ks = [one.top_k for one in sizes]
    with plot(path, "Bytes of a label row, by layout", "K entries stored", "B per token") as axes:
        (line,) = axes.plot(ks, [one.needed for one in sizes], marker="o", label=f"{OURS}: the same content")
        everything = [one.file for one in sizes]
        axes.plot(ks, everything, "o--", color=line.get_color(), label=f"{OURS}: with tails and tokens")
        for layout in PLAIN_LAYOUTS:
            if layout.slug not in ("jsonl", "numpy"):  # so large that they would hide the others
                plain = [one.plain[layout.name] for one in sizes]
                axes.plot(ks, plain, marker=".", linewidth=1.2, label=layout.name)
        axes.set_xticks(ks)


def _columns(path: Path, sizes: Sequence[Sizes]) -> None:
    with plot(path, "Bytes of a label row, by what they hold", "K entries stored", "B per token") as axes:
        bottom = [0.0] * len(sizes)
        for part in COLUMN_PARTS:
            heights = [one.columns[part] for one in sizes]
            axes.bar([str(one.top_k) for one in sizes], heights, bottom=bottom, label=part)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]


def _fidelity(path: Path, fidelities: Sequence[tuple[int, Fidelity]]) -> None:
    title = "Error of the labels that a reader gets at T=2"
    with plot(path, title, "K entries stored", "KL to what was written, nats") as axes:
        for slug, label in (("this", f"{OURS}: exact tail"), (GAPS.slug, "plain layouts: renormalised")):
            points = [
                (k, found.kl_by_temperature[2.0])
                for k, found in fidelities
                if found.slug == slug and 2.0 in found.kl_by_temperature
            ]
            axes.plot([k for k, _ in points], [kl for _, kl in points], marker="o", label=label)
        axes.set_xticks(sorted({k for k, found in fidelities if found.slug == "this"}))
        axes.set_yscale("log")


def _codebooks(path: Path, points: Sequence[CodebookPoint]) -> None:
    title = "Bytes saved by more codebooks, with the seconds to train them"
    numbers = [point.num_codebooks for point in points]
    saved = [100 * (1 - point.bytes_per_token / points[0].bytes_per_token) for point in points]
    with plot(path, title, "codebooks", "saved of ids, values, normaliser, %") as axes:
        axes.plot(numbers, saved, marker="o")
        for point, share in zip(points, saved, strict=True):
            place = (point.num_codebooks, share)
            axes.annotate(f"{point.train_sec:.2g} s", place, (5, -12), textcoords="offset points")
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.set_xlim(right=1.6 * numbers[-1])
        axes.set_ylim(-0.15 * (max(saved) or 1), 1.1 * max(saved) or 1)
