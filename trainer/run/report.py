"""What a run prints when it is done."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from trainer.hf.evaluate import HIGHER_IS_BETTER
from trainer.run.model_card import TITLES
from trainer.run.output import RunMetrics


def evaluation_table(
    before: Mapping[str, float] | None,
    after: Mapping[str, float],
    teacher: Mapping[str, float] | None = None,
) -> str:
    """Held-out figures, one a line, before and after training where both are known.

    With the teacher's figures, these too, and the share of the way to them that the student has gone.
    """
    head = f"held out: {after['num_sequences']:,} sequences, {after['num_rows']:,} label rows"
    titles = {name: title for name, title in TITLES.items() if name in after}
    if before is None:
        return "\n".join([head, *(f"  {title:<34}{after[name]:>9.4f}" for name, title in titles.items())])
    lines = [head, f"  {'':<34}{'before':>9}{'after':>9}"]
    lines += [f"  {title:<34}{before[name]:>9.4f}{after[name]:>9.4f}" for name, title in titles.items()]
    if teacher is not None:
        goals = {"kl": 0.0, "top1_agreement": 1.0, **teacher}
        lines[1] += f"{'teacher':>9}{'gap closed':>12}"
        for place, name in enumerate(titles, start=2):
            if name in goals:
                share = gap_closed(name, before[name], after[name], goals[name])
                lines[place] += f"{goals[name]:>9.4f}" + ("" if share is None else f"{share:>12.0%}")
    return "\n".join(lines)


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
        f"{evaluation_table(metrics.before, metrics.after, metrics.teacher)}\n"
        f"student saved in {folder}\n"
        f"evaluate it again: penumbra train eval {shlex.quote(folder)}/train.json"
    )
