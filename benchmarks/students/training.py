"""Time and peak memory of a training step of the head: fused against dense, distillation against labels.

A step is projection, loss and both gradients (hidden states and weight) at hidden size 256 and K=64 in
fp32 on one thread. That is the hard case for the ratio: a wider model spends more time in the projection,
which all losses share.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.report.plots import plot
from benchmarks.report.results import Cell, Figure, Result, publish
from benchmarks.students.training_step import HIDDEN_SIZE, LOSSES, TOP_K, Case, Measured, measure_case
from logitstore.common.options import positive

LOSS_NAMES = tuple(LOSSES)
FUSED, FUSED_T2, FUSED_CE, DENSE, DENSE_CE = LOSS_NAMES
DENSE_COPIES = 6
"""Copies of [tokens, V] that a dense step is expected to hold at most; only used to skip what cannot fit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which cases are measured."""

    time_tokens: int
    repetitions: int
    memory: tuple[tuple[int, int, tuple[str, ...]], ...]
    """(vocabulary, tokens, losses): each loss in a process of its own, one step."""
    headline: tuple[int, int]
    """(vocabulary, tokens) of the memory quotient."""


ALL = (FUSED, FUSED_CE, DENSE, DENSE_CE)
QUICK = Plan(
    time_tokens=512,
    repetitions=3,
    memory=((49_152, 512, (FUSED, DENSE)), (49_152, 2048, ALL)),
    headline=(49_152, 2048),
)
FULL = Plan(
    time_tokens=1024,
    repetitions=5,
    memory=(
        (49_152, 512, (FUSED, DENSE)),
        (49_152, 2048, (FUSED, DENSE)),
        (49_152, 8192, (FUSED, DENSE)),
        (151_936, 512, (FUSED, DENSE)),
        (151_936, 2048, (FUSED, DENSE)),
        (151_936, 4096, ALL),
        (151_936, 8192, (FUSED,)),
    ),
    headline=(151_936, 4096),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument(
        "--repetitions", type=positive, help="steps of each loss that are timed (default 5, quick 3)"
    )


def run(args: argparse.Namespace) -> int:
    plan = QUICK if args.quick else FULL
    repetitions = args.repetitions or plan.repetitions
    vocabularies = (49_152,) if args.quick else (49_152, 151_936)
    times = {
        size: measure_case(Case(LOSS_NAMES, size, plan.time_tokens, repetitions)) for size in vocabularies
    }
    peaks: dict[tuple[int, int, str], Measured] = {}
    skipped = []
    for size, tokens, names in plan.memory:
        for name in names:
            if name in (DENSE, DENSE_CE) and not _fits(size, tokens):
                skipped.append(
                    f"{name} at {tokens} tokens and {size} ids was not measured: too little memory."
                )
                continue
            peaks[size, tokens, name] = measure_case(Case((name,), size, tokens, 1))
    _plot_memory(args, peaks)
    figures = [*_time_figures(times), *_memory_figures(peaks, plan)]
    value = {figure.name: figure.value for figure in figures}
    size, tokens = plan.headline
    result = Result.of(
        "training",
        meaning=f"With {size:,} ids a fused distillation step takes "
        f"{value[f'time_over_cross_entropy_v{size}']:.2f} times the time of fused cross-entropy and "
        f"{value[f'time_over_dense_cross_entropy_v{size}']:.2f} times that of PyTorch's own, with a peak of "
        f"{value[f'peak_mib_v{size}_t{tokens}']:,.0f} MiB at {tokens:,} tokens.",
        columns=("vocabulary", "tokens", "loss", "s/step", "x fused CE", "peak MiB"),
        rows=[*_time_rows(times, plan.time_tokens), *_memory_rows(peaks)],
        figures=figures,
        plots=["training-memory.svg"],
        notes=[
            f"Hidden size {HIDDEN_SIZE}, K={TOP_K}, fp32, one thread; forward and backward of the head only.",
            "`penumbra bench gpu` measures the losses on a GPU, at sizes that fill one.",
            "Dense: all logits at once. Dense cross-entropy is PyTorch's linear and cross_entropy.",
            "Seconds are the processor's. Quotients are medians over steps that alternate between the losses "
            "in one process.",
            "Peak: largest resident size during one step in a process of its own, less weights and inputs; "
            "the weight's gradient is in it. Its single step is cold, so its seconds are not quoted.",
            *skipped,
        ],
        quick=args.quick,
        details={"seconds": {str(size): measured.seconds for size, measured in times.items()}},
    )
    publish(result, args.out, quiet=args.quiet)
    return 0


def _fits(vocab_size: int, tokens: int) -> bool:
    """Whether a dense step leaves the machine some memory; a benchmark must not end other programs."""
    with open("/proc/meminfo", encoding="utf-8") as meminfo:
        available = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable"))
    return 4 * vocab_size * tokens * DENSE_COPIES < 0.9 * available


def _quotients(measured: Measured, name: str, other: str) -> list[float]:
    return [a / b for a, b in zip(measured.seconds[name], measured.seconds[other], strict=True)]


def _time_rows(times: dict[int, Measured], tokens: int) -> list[Sequence[Cell]]:
    return [
        (size, tokens, name, median(samples), median(_quotients(measured, name, FUSED_CE)), None)
        for size, measured in times.items()
        for name, samples in measured.seconds.items()
    ]


def _memory_rows(peaks: dict[tuple[int, int, str], Measured]) -> list[Sequence[Cell]]:
    return [
        (size, tokens, name, None, None, measured.peak_bytes / 2**20)
        for (size, tokens, name), measured in peaks.items()
    ]


def _time_figures(times: dict[int, Measured]) -> list[Figure]:
    figures = []
    for size, measured in times.items():
        for label, name, other in (
            ("time_over_cross_entropy", FUSED, FUSED_CE),
            ("time_over_cross_entropy_t2", FUSED_T2, FUSED_CE),
            ("time_over_dense", FUSED, DENSE),
            ("time_over_dense_cross_entropy", FUSED, DENSE_CE),
        ):
            samples = _quotients(measured, name, other)
            figures.append(Figure.of(f"{label}_v{size}", samples, "", is_ratio=True, better="lower"))
        figures.append(Figure.of(f"seconds_per_step_v{size}", measured.seconds[FUSED], "s"))
    return figures


def _memory_figures(peaks: dict[tuple[int, int, str], Measured], plan: Plan) -> list[Figure]:
    size, tokens = plan.headline
    fused = {key[1]: peak.peak_bytes for key, peak in peaks.items() if key[0] == size and key[2] == FUSED}
    figures = [
        Figure.of(
            f"memory_growth_v{size}",
            fused[max(fused)] / fused[min(fused)],
            "",
            is_ratio=True,
            better="lower",
        ),
        Figure.of(f"peak_mib_v{size}_t{tokens}", fused[tokens] / 2**20, "MiB"),
    ]
    dense = peaks.get((size, tokens, DENSE))
    if dense is not None:
        quotient = dense.peak_bytes / fused[tokens]
        figures += [
            Figure.of(f"memory_saved_v{size}_t{tokens}", quotient, "", is_ratio=True, better="higher"),
            Figure.of(f"dense_peak_mib_v{size}_t{tokens}", dense.peak_bytes / 2**20, "MiB"),
        ]
    return figures


def _plot_memory(args: argparse.Namespace, peaks: dict[tuple[int, int, str], Measured]) -> None:
    title = "Peak memory of a step by the size of the batch"
    with plot(args.out / "training-memory.svg", title, "tokens in the batch", "peak memory, MiB") as axes:
        for size in sorted({key[0] for key in peaks}):
            for name in (FUSED, DENSE):
                points = sorted(
                    (k[1], m.peak_bytes / 2**20) for k, m in peaks.items() if k[::2] == (size, name)
                )
                if points:  # a dense step that does not fit is not measured
                    axes.plot(*zip(*points, strict=True), marker="o", label=f"{name}, {size:,} ids")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        tokens = sorted({key[1] for key in peaks})
        axes.set_xticks(tokens, [f"{number:,}" for number in tokens])
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylim(
            top=8 * max(measured.peak_bytes for measured in peaks.values()) / 2**20
        )  # for the legend
