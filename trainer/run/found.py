"""What a run on the command line is not told and can be found: the precision, what fits few records.

Only what neither the file nor an option says is looked for, and each thing that was found is said in a line.
Runs from a file are left as the file has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from logitstore.store import LogitStore

LEAST_HELD_OUT = 20
"""Sequences to evaluate on, as far as half of all allows."""
LEARNING_RATE = 5e-5
"""For weights that were trained before; the rate of the file's default is for fresh ones."""


def find_settings(document: dict[str, Any], *, trains_here: bool = True) -> list[str]:
    """Add to a run's document what fits its student and store; a line about each setting added.

    Without `trains_here` nothing is concluded from this machine's GPUs, as others will train.

    Raises StoreError for a store that cannot be read.
    """
    lines = []
    data = document.get("data")
    uri = data.get("stores") if isinstance(data, dict) else None
    if isinstance(data, dict) and isinstance(uri, str) and "held_out_fraction" not in data:
        num_sequences = int(LogitStore.open(uri).shards().column("num_sequences").sum())
        share = round(min(0.5, LEAST_HELD_OUT / max(num_sequences, 1)), 3)
        if share > 0.05:
            data["held_out_fraction"] = share
            lines.append(
                f"found: {num_sequences:,} sequences; data.held_out_fraction = {share}, about "
                f"{share * num_sequences:.0f} to evaluate on"
            )
    training = document.setdefault("training", {})
    if not isinstance(training, dict):
        return lines
    if "learning_rate" not in training and _is_set(document, "student", "model"):
        training["learning_rate"] = LEARNING_RATE
        lines.append(
            f"assumed: training.learning_rate = {LEARNING_RATE:g}, for a student that is trained already"
        )
    if "precision" not in training and not trains_here:
        lines.append(
            'assumed: training.precision = "fp32", since other machines train; "bf16" suits their GPUs'
        )
    elif "precision" not in training:
        lines += _find_precision(training)
    return lines


def _find_precision(training: dict[str, Any]) -> list[str]:
    import torch  # takes a second or two, as training will anyway

    if not torch.cuda.is_available():
        return ["found: no GPU; the CPU trains"]
    name = torch.cuda.get_device_name(0)
    if not torch.cuda.is_bf16_supported():
        return [f'found: {name}; training.precision = "fp32", since it has no bf16']
    training["precision"] = "bf16"
    return [f'found: {name}; training.precision = "bf16"']


def _is_set(document: Mapping[str, Any], section: str, name: str) -> bool:
    table = document.get(section)
    return isinstance(table, Mapping) and table.get(name) is not None
