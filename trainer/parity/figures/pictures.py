"""The curve that decides on routing, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from trainer.parity.figures.gap import Routing

# Of Okabe and Ito, distinct for colour-blind readers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")


def draw_routing(path: Path, curves: Mapping[str, Routing]) -> None:
    """Each score's quality over the share of requests that go to the teacher, least sure first.

    Dashed: the same share, chosen without regard to confidence.
    """
    columns = min(len(curves), 2)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(curves):
            axes.set_visible(False)
            continue
        name, routing = list(curves.items())[place]
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(routing.share, routing.quality, color=colour, linewidth=2, label="least sure first")
        ends = (routing.quality[0], routing.quality[-1])
        axes.plot([0, 1], ends, color="#5c6370", linestyle="--", linewidth=1.2, label="any")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlabel("share of requests sent to the teacher")
        axes.set_ylabel("mean score" if routing.higher_is_better else "mean score, lower is better")
        axes.set_xlim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120, facecolor="white")
