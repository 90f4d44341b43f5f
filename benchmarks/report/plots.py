"""Small SVG plots for the results page: one message each, labelled axes with units, readable in the dark.

with plot(args.out / "storage-bytes.svg", "A row costs ...", "K entries stored", "B per token") as axes:
    axes.plot(ks, bytes_per_token, marker="o", label="lossless")
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct for colour-blind readers: blue, vermilion, green, orange, purple, sky.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "path",  # text looks the same everywhere
    "svg.hashsalt": "penumbra",  # same data, same bytes
}


@contextmanager
def plot(
    path: Path, title: str, x_label: str, y_label: str, *, width: float = 6.4, height: float = 3.6
) -> Iterator[Axes]:
    """Axes to draw on; when the block ends they are saved as SVG at `path` (legend if anything is labelled).

    `width` and `height` are inches of 72 points.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        yield axes
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", facecolor="white", metadata={"Date": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(compact(drawn.getvalue()), encoding="utf-8")


def compact(svg: str) -> str:
    """The same picture on a few lines: without white space between shapes."""
    svg = re.sub(r" *<metadata>.*?</metadata>\n", "", svg, flags=re.DOTALL)
    svg = re.sub(r'"[^"]*"', lambda value: re.sub(r"\s*\n\s*", " ", value[0]), svg)
    return re.sub(r">\s*\n\s*(?=<(?:/g|/defs|g|use|defs|path|/clipPath|rect|clipPath)\b)", ">", svg)
