"""What a run prints when it is done."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from trainer.run.model_card import TITLES
from trainer.run.output import RunMetrics


def evaluation_table(before: Mapping[str, float] | None, after: Mapping[str, float]) -> str:
    """Held-out figures, one a line, before and after training where both are known."""
    head = f"held out: {after['num_sequences']:,} sequences, {after['num_rows']:,} label rows"
    titles = {name: title for name, title in TITLES.items() if name in after}
    if before is None:
        return "\n".join([head, *(f"  {title:<34}{after[name]:>9.4f}" for name, title in titles.items())])
    lines = [head, f"  {'':<34}{'before':>9}{'after':>9}"]
    lines += [f"  {title:<34}{before[name]:>9.4f}{after[name]:>9.4f}" for name, title in titles.items()]
    return "\n".join(lines)


def training_table(metrics: RunMetrics, folder: str) -> str:
    rate = metrics.num_tokens / metrics.train_seconds if metrics.train_seconds else 0.0
    return (
        f"{metrics.num_steps:,} steps in {metrics.train_seconds:,.1f} s, {rate:,.0f} tokens/s, "
        f"{metrics.num_trainable_parameters:,} of {metrics.num_parameters:,} parameters trained\n"
        f"{evaluation_table(metrics.before, metrics.after)}\n"
        f"student saved in {folder}\n"
        f"evaluate it again: penumbra train eval {shlex.quote(folder)}/train.json"
    )
