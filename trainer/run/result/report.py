"""What a run prints when it is done."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from trainer.hf.evaluation.better import HIGHER_IS_BETTER
from trainer.run.file_names import CONFIG_NAME
from trainer.run.output import RunMetrics
from trainer.run.result.model_card import TITLES, calibration_in_words, teachers_column


def evaluation_table(
    before: Mapping[str, float] | None,
    after: Mapping[str, float],
    teacher: Mapping[str, float] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> str:
    """Held-out figures, one a line: before training where that is known, after it, and the teacher's.

    With all three, the share of the way to the teacher that the student has gone; with the `calibration`
    of a run or an evaluation, a line on the student's temperature.
    """
    head = f"held out: {after['num_sequences']:,} sequences, {after['num_rows']:,} label rows"
    names = [name for name in TITLES if name in after]
    teacher, left_out = teachers_column(teacher, after)
    goals = None if teacher is None else {"kl": 0.0, "top1_agreement": 1.0, **teacher}
    columns = [] if before is None else [("before", before)]
    columns.append(("student" if before is None else "after", after))
    columns += [] if goals is None else [("teacher", goals)]
    lines = [head, f"  {'':<34}" + "".join(f"{title:>9}" for title, _ in columns)]
    if before is not None and goals is not None:
        lines[1] += f"{'gap closed':>12}"
    for name in names:
        cells = "".join(f"{known[name]:>9.4f}" if name in known else f"{'':>9}" for _, known in columns)
        share = None
        if before is not None and goals is not None and name in goals:
            share = gap_closed(name, before[name], after[name], goals[name])
        lines.append(f"  {TITLES[name]:<34}{cells}" + ("" if share is None else f"{percent(share):>12}"))
    if left_out is not None:
        lines.append(f"  {left_out}")
    if calibration and "student" in calibration:
        lines.append(f"  calibration: {calibration_in_words(calibration['student'])}")
    return "\n".join(line.rstrip() for line in lines)


def percent(share: float) -> str:
    """ "97%"; never "-0%"."""
    return f"{round(share, 2) + 0.0:.0%}"


def gap_closed(name: str, before: float, after: float, teacher: float) -> float | None:
    """Share of the way from the untrained student to its teacher; None where the teacher is no better.

    None too for the calibration error: a student may be calibrated better than a teacher that it is far from.
    """
    if name == "calibration_error":
        return None
    way = teacher - before if name in HIGHER_IS_BETTER else before - teacher
    gone = after - before if name in HIGHER_IS_BETTER else before - after
    return gone / way if way > 0 else None


def training_table(metrics: RunMetrics, folder: str) -> str:
    rate = metrics.num_tokens / metrics.train_seconds if metrics.train_seconds else 0.0
    return (
        f"{metrics.num_steps:,} steps in {metrics.train_seconds:,.1f} s, {rate:,.0f} tokens/s, "
        f"{metrics.num_trainable_parameters:,} of {metrics.num_parameters:,} parameters trained\n"
        f"{evaluation_table(metrics.before, metrics.after, metrics.teacher, metrics.calibration)}\n"
        f"student saved in {folder}\n"
        f"evaluate it again: penumbra train eval {shlex.quote(folder)}/{CONFIG_NAME}"
    )
