"""The regression guard: fresh quick measurements against the committed ones.

Only figures that hold across machines are compared: sizes, qualities and quotients of two rates of one
run. A figure fails if it got worse by more than 15% beyond the noise of both measurements, and if it
still does after its part was measured anew: the median of all attempts counts. The table says where noise
hides losses that it should show. Differences no larger than rounding are none.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.report.results import FILE_WIDTH, Figure, Result, load_all
from benchmarks.suite import measure
from logitstore.common.console import Console

REFERENCE = Path(__file__).parents[1] / "results" / "quick"
ALLOWED_LOSS = 0.15
ATTEMPTS = 3
NEGLIGIBLE = {"nats": 1e-6}
"""By unit: another processor's rounding doubles a KL of 1e-8, and no student is worse for it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure, now and then."""

    part: str
    name: str
    reference: float
    value: float
    """Median over the attempts."""
    loss: float
    """How much worse it is, relative to the reference; negative where it got better."""
    noise: float
    """Relative half range of both measurements together."""

    @property
    def failed(self) -> bool:
        return self.loss - self.noise > ALLOWED_LOSS

    @property
    def verdict(self) -> str:
        if self.failed:
            return "LOST"
        return (
            f"ok; a loss below {ALLOWED_LOSS + self.noise:.0%} would not show" if self.noise > 0.05 else "ok"
        )


def compare_figures(reference: Figure, attempts: Sequence[Figure], part: str) -> Comparison:
    """A figure's loss; the attempts are repetitions of one measurement."""
    value = statistics.median(figure.value for figure in attempts)
    worse = value - reference.value if reference.better == "lower" else reference.value - value
    if abs(worse) <= NEGLIGIBLE.get(reference.unit, 1e-12):
        loss = 0.0
    else:
        loss = worse / abs(reference.value) if reference.value else math.copysign(math.inf, worse)
    spread = max(figure.spread for figure in attempts)
    noise = math.hypot(reference.spread, spread) / 2 / (abs(reference.value) or 1.0)
    return Comparison(part, reference.name, reference.value, value, loss, noise)


def compare_results(
    reference: Mapping[str, Result], attempts: Sequence[Mapping[str, Result]]
) -> list[Comparison]:
    """All figures that may be compared, in order; one that is no longer measured counts as lost."""
    comparisons = []
    for part, expected in reference.items():
        for figure in filter(is_comparable, expected.figures):
            found = [
                new for attempt in attempts if part in attempt
                for new in attempt[part].figures if new.name == figure.name
            ]  # fmt: skip
            if found:
                comparisons.append(compare_figures(figure, found, part))
            else:
                lost = Comparison(part, figure.name, figure.value, math.nan, math.inf, 0.0)
                comparisons.append(lost)
    return comparisons


def is_comparable(figure: Figure) -> bool:
    """Whether other hardware and another run should give the same, and which way is worse."""
    return figure.is_ratio and figure.better != "neither"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="folder of committed results")
    parser.add_argument("--out", type=Path, default=Path("build/bench-check"), help="folder of fresh results")
    parser.add_argument("--parts", type=lambda text: text.split(","), help="only these parts")


def run(args: argparse.Namespace) -> int:
    reference = load_all(args.reference)
    if args.parts and (unknown := sorted({*args.parts} - reference.keys())):
        raise ValueError(
            f"--parts {', '.join(unknown)}: {args.reference} has no such part; it has "
            f"{', '.join(reference) or 'none'}"
        )
    if args.parts:
        reference = {name: result for name, result in reference.items() if name in args.parts}
    if not reference:
        raise ValueError(
            f"{args.reference} holds no results to compare with; run `make bench` and commit what it writes"
        )
    attempts: list[dict[str, Result]] = []
    suspects = [name for name, result in reference.items() if any(map(is_comparable, result.figures))]
    comparisons: list[Comparison] = []
    for attempt in range(ATTEMPTS):
        out = args.out / f"attempt-{attempt + 1}"
        failed = measure(suspects, out, ["--quick", "--quiet"])
        fresh = load_all(out)
        attempts.append({name: fresh[name] for name in suspects if name in fresh and name not in failed})
        comparisons = compare_results(reference, attempts)
        suspects = sorted({one.part for one in comparisons if one.failed})
        if not suspects:
            break
    show(comparisons)
    lost = [f"{one.part}.{one.name}" for one in comparisons if one.failed]
    if lost:
        verdict = f"lost more than {ALLOWED_LOSS:.0%} in {len(attempts)} attempts: {', '.join(lost)}"
    else:
        verdict = f"none of {len(comparisons)} ratios lost more than {ALLOWED_LOSS:.0%} beyond its noise"
    print(f"check: {verdict}", file=sys.stderr)
    return int(bool(lost))


def show(comparisons: Sequence[Comparison]) -> None:
    table = Table("figure", "committed", "now", "loss", "noise", "", title="ratios against committed results")
    for one in comparisons:
        table.add_row(
            f"{one.part}.{one.name}", f"{one.reference:.4g}", f"{one.value:.4g}", f"{one.loss:+.1%}",
            f"{one.noise:.1%}", one.verdict,
            style="red" if one.failed else None,
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    console.print(table)
