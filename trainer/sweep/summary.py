"""What a sweep found: one table, one record and a recommendation that says how sure it is."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from logitstore.common.whole_file import write_whole
from trainer.hf.evaluation.better import LOWER_IS_BETTER
from trainer.sweep.certainty import ERROR_RATE, Verdict, verdict
from trainer.sweep.grid import SEEDS, Axis, short_names
from trainer.sweep.runs import Outcome

FIGURES = ("kl", "cross_entropy", "top1_agreement", "accuracy", "calibration_error")
"""Shown of every setting; a run may be chosen by any of them."""
SHORT = {"kl": "KL", "cross_entropy": "CE", "top1_agreement": "top-1", "accuracy": "accuracy",
         "calibration_error": "ECE"}  # fmt: skip


def settings_name(values: Mapping[str, Any]) -> str:
    """ "temperature=2 alpha=0.5": the settings without the seeds."""
    names = [name for name in values if name not in SEEDS]
    words = [f"{short}={values[name]}" for short, name in zip(short_names(names), names, strict=True)]
    return " ".join(words) or "as configured"


def by_settings(outcomes: Sequence[Outcome], figure: str) -> dict[str, dict[tuple[Any, ...], float]]:
    """The figure of each finished run after training, by settings and seeds."""
    found: dict[str, dict[tuple[Any, ...], float]] = defaultdict(dict)
    for outcome in outcomes:
        if outcome.metrics is not None:
            values = outcome.point.values
            seeds = tuple(values.get(name) for name in SEEDS)
            found[settings_name(values)][seeds] = float(outcome.metrics["after"][figure])
    return dict(found)


@dataclass(frozen=True, slots=True)
class SettingsRow:
    """One line of the table."""

    name: str
    num_seeds: int
    cells: tuple[str, ...]
    """By FIGURES: the mean over seeds and, after ±, their standard deviation."""


def rows_of(outcomes: Sequence[Outcome], by: str) -> list[SettingsRow]:
    """A row for every setting that has a finished run, the best first."""
    columns = {figure: by_settings(outcomes, figure) for figure in FIGURES}
    return [
        SettingsRow(
            name,
            len(columns[by][name]),
            tuple(_cell([*columns[figure][name].values()]) for figure in FIGURES),
        )
        for name in _ordered(columns[by], by)
    ]


def table(outcomes: Sequence[Outcome], by: str) -> list[str]:
    """A line for every setting, the best first."""
    rows = rows_of(outcomes, by)
    width = max((len(row.name) for row in rows), default=8)
    lines = [f"{'':<{width}}  seeds" + "".join(f"{SHORT[figure]:>18}" for figure in FIGURES)]
    for row in rows:
        lines.append(f"{row.name:<{width}}  {row.num_seeds:>5}" + "".join(f"{c:>18}" for c in row.cells))
    return lines


def recommendation(outcomes: Sequence[Outcome], by: str) -> list[str]:
    """Sentences: the best, by how much, and what could be as good."""
    figures = by_settings(outcomes, by)
    if not figures:
        return ["no run has finished, so nothing can be recommended"]
    found = best_of(outcomes, by)
    if found is None:
        fewest, *_, most = sorted(_rows_judged_on(outcomes))
        return [
            f"nothing is recommended: the runs were judged on unlike label rows ({fewest:,} to {most:,}), so "
            "that their figures cannot be compared; leave out of --over what decides on them, such as "
            "data.max_length and data.segments"
        ]
    lines = [f"recommended: {found.best}, with the best {SHORT[by]} on held-out records, {found.mean:.4f}"]
    tried = [one for one in outcomes if settings_name(one.point.values) == found.best]
    if failed := [one for one in tried if one.metrics is None]:
        lines.append(f"{len(failed)} of its {len(tried)} runs failed, which this figure does not show")
    if found.next_best is None:
        return lines
    if all(len(by_seed) == 1 for by_seed in figures.values()):
        return [
            *lines,
            "one seed each: nothing tells whether another seed would choose the same; give --seeds 3",
        ]
    return [*lines, _next(found), _others(found, len(figures))]


def best_of(outcomes: Sequence[Outcome], by: str) -> Verdict | None:
    """None where no run has finished, and where runs were judged on unlike rows."""
    figures = by_settings(outcomes, by)
    if not figures or len(_rows_judged_on(outcomes)) > 1:
        return None
    return verdict(figures, lower_is_better=by in LOWER_IS_BETTER)


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Those that failed, in words; nothing where none did."""
    failed = [outcome for outcome in outcomes if outcome.metrics is None]
    if not failed:
        return []
    first = failed[0]
    return [f"{len(failed)} of {len(outcomes)} runs failed, the first {first.point.name}: {first.error}"]


def _rows_judged_on(outcomes: Sequence[Outcome]) -> set[int]:
    return {outcome.metrics["after"]["num_rows"] for outcome in outcomes if outcome.metrics is not None}


def record(outcomes: Sequence[Outcome], axes: Sequence[Axis], by: str) -> dict[str, Any]:
    """What `sweep.json` holds."""
    return {
        "over": {axis.name: list(axis.values) for axis in axes},
        "by": by,
        "recommendation": recommendation(outcomes, by),
        "runs": [
            {
                "name": outcome.point.name,
                "settings": outcome.point.values,
                "folder": outcome.point.config.output.folder,
                "state": outcome.state,
                "error": outcome.error,
                "before": None if outcome.metrics is None else outcome.metrics["before"],
                "after": None if outcome.metrics is None else outcome.metrics["after"],
                "train_seconds": None if outcome.metrics is None else outcome.metrics["train_seconds"],
            }
            for outcome in outcomes
        ],
    }


def write_record(path: Path, found: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(found, indent=1) + "\n")


def _next(found: Verdict) -> str:
    if found.lead is None:
        return f"the next, {found.next_best}, has fewer than two seeds in common with it, which tell nothing"
    return (
        f"the next, {found.next_best}, is behind by {found.lead:.4f} ±{found.lead_spread:.4f}, the mean and "
        f"standard deviation of the differences of {found.num_seeds} seeds"
    )


def _others(found: Verdict, num_settings: int) -> str:
    how = (
        f"paired t-tests with Bonferroni's correction: of sweeps whose settings are all equal in truth, at "
        f"most {ERROR_RATE:.0%} tell any apart"
    )
    if not found.not_worse:
        return f"it is told apart from all {num_settings - 1} others ({how})"
    return f"not told apart from it, which more seeds might do: {'; '.join(found.not_worse)} ({how})"


def _ordered(figures: Mapping[str, Mapping[Any, float]], by: str) -> list[str]:
    sign = 1 if by in LOWER_IS_BETTER else -1
    return sorted(figures, key=lambda name: sign * mean(figures[name].values()))


def _cell(values: Sequence[float]) -> str:
    spread = f" ±{stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"
