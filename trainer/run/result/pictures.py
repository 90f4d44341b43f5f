"""How often a model is right at each confidence, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Of Okabe and Ito, distinct for colour-blind readers.
ACCURACY, SHARE, INK = "#0072b2", "#e69f00", "#5c6370"


def draw_reliability(path: Path, calibration: Mapping[str, Any]) -> None:
    """A PNG or SVG, by the suffix of `path`, of what `RunMetrics.calibration` holds."""
    panels = []
    if "teacher" in calibration:
        panels.append(("teacher", calibration["teacher"]))
    if "student" in calibration:
        student = calibration["student"]
        panels.append(("student", student["reliability_before"]))
        if abs(student["temperature"] - 1) > 1e-6:
            panels.append(
                (f"student, logits divided by {student['temperature']:.2f}", student["reliability"])
            )
    figure = Figure(figsize=(3.7 * len(panels), 4.2), layout="constrained")
    axes_2P = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1))
    for index, (title, reliability) in enumerate(panels):
        _panel(axes_2P[0][index], axes_2P[1][index], title, reliability)
    axes_2P[0][0].set_ylabel("share that is right")
    axes_2P[1][0].set_ylabel("share of rows")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, facecolor="white")


def _panel(upper: Axes, lower: Axes, title: str, reliability: Mapping[str, Any]) -> None:
    counts, right = reliability["num_rows"], reliability["accuracy"]
    width, total = 1 / len(counts), max(sum(counts), 1)
    lefts = [place * width for place in range(len(counts))]
    shown = [(left, share) for left, share in zip(lefts, right, strict=True) if share is not None]
    upper.bar([left for left, _ in shown], [share for _, share in shown], width, align="edge",
              color=ACCURACY, edgecolor="white")  # fmt: skip
    upper.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1.2)
    error = sum(
        count * abs(share - sure)
        for count, share, sure in zip(counts, right, reliability["confidence"], strict=True)
        if share is not None
    )
    upper.set_title(f"{title}\ncalibration error {error / total:.4f}", loc="left", fontsize=10)
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    lower.bar(lefts, [count / total for count in counts], width, align="edge", color=SHARE, edgecolor="white")
    lower.set_xlabel("confidence in the top token")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
