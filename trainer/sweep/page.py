"""A sweep as one page: curves over each setting with the spread of seeds, table and recommendation."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean

from trainer.sweep.grid import SEEDS, Axis
from trainer.sweep.runs import Outcome
from trainer.sweep.summary import FIGURES, SHORT, recommendation, rows_of, settings_name

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 460, 260, 62, 34, 14, 12
TITLES = {
    "kl": "KL(teacher, student), nats",
    "cross_entropy": "cross-entropy of the text, nats",
    "top1_agreement": "top token as the teacher's",
    "accuracy": "top token as in the text",
    "calibration_error": "expected calibration error",
}
NUM_COLOURS = 8
DASHES = ("none", "7 4", "2 3")
"""Of one curve in each colour, the next one in each, and so on."""
STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--soft:#5c6370;--line:#d5d9df;--paper:#fff;
--c0:#2563a8;--c1:#c2410c;--c2:#15803d;--c3:#7c3aed;--c4:#6b7280;--c5:#0e7490;--c6:#be185d;--c7:#713f12}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#9aa3af;--line:#3a3f47;--paper:#16181c;
--c0:#7ab3ef;--c1:#fb923c;--c2:#4ade80;--c3:#c4b5fd;--c4:#cbd5e1;--c5:#67e8f9;--c6:#f9a8d4;--c7:#fef08a}}
body{margin:0 auto;max-width:1000px;padding:1.2rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
.best{border-left:4px solid var(--c2);padding:.2rem .8rem;margin:1rem 0}
.pair{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;flex:1 1 320px;min-width:0}
figcaption,.soft{color:var(--soft);font-size:.87rem}
svg{width:100%;height:auto}svg text{fill:var(--soft);font-size:12px}
.grid{stroke:var(--line)}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;white-space:nowrap;font-weight:400}
tr:first-child th{color:var(--soft)}tr+tr{border-top:1px solid var(--line)}
th:first-child{position:sticky;left:0;background:var(--paper);text-align:left;white-space:normal;
padding-left:0}code{overflow-wrap:anywhere}
.key{display:inline-block;margin-right:1rem}.key svg{width:1.6rem;height:.5rem;
margin-right:.35rem}
"""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart."""

    name: str
    points: tuple[tuple[int, tuple[float, ...]], ...]
    """The place of a value among the setting's, and the figure of each seed there."""


def page(outcomes: Sequence[Outcome], axes: Sequence[Axis], by: str, title: str) -> str:
    """A self-contained HTML page."""
    first, *others = recommendation(outcomes, by)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    num_points = math.prod(len(axis.values) for axis in axes)
    ended = "" if len(outcomes) == num_points else f"{len(outcomes)} have ended, "
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>Sweep: {escape(title)}</title><style>{STYLE}</style>",
        f"<h1>Sweep of {num_points} runs</h1><p class=soft>{ended}<code>{escape(title)}</code></p>",
        f"<div class=best><b>{escape(first)}</b>"
        + "".join(f"<br>{escape(text)}" for text in others)
        + "</div>",
    ]
    for axis in axes:
        if axis.name not in SEEDS and len(axis.values) > 1:
            parts.append(_section(outcomes, axis, by))
    parts += [
        "<h2>All settings, the best first</h2>",
        _table(outcomes, by),
        "<p class=soft>On held-out records, at temperature 1. Means over seeds ± standard deviation.</p>",
    ]
    if failed:
        items = "".join(f"<li>{escape(one.point.name)}: {escape(one.error)}</li>" for one in failed)
        runs = "run" if len(failed) == 1 else "runs"
        parts.append(f"<h2>{len(failed)} {runs} failed</h2><ul>{items}</ul>")
    return "\n".join(parts)


def _table(outcomes: Sequence[Outcome], by: str) -> str:
    heads = "".join(f"<th>{escape(SHORT[figure])}" for figure in FIGURES)
    rows = "".join(
        f"<tr><th>{escape(row.name)}<td>{row.num_seeds}" + "".join(f"<td>{cell}" for cell in row.cells)
        for row in rows_of(outcomes, by)
    )
    return f"<div class=scroll><table><tr><th><th>seeds{heads}{rows}</table></div>"


def _section(outcomes: Sequence[Outcome], axis: Axis, by: str) -> str:
    figures = [by, "calibration_error" if by != "calibration_error" else "kl"]
    curves = {figure: _curves(outcomes, axis, figure) for figure in figures}
    names = [curve.name for curve in curves[by]]
    keys = "".join(
        f"<span class=key><svg viewBox='0 0 26 8'><line x2=26 y1=4 y2=4 {_stroke(i)} /></svg>"
        f"{escape(name)}</span>"
        for i, name in enumerate(names)
    )
    charts = "".join(
        f"<figure>{_chart(curves[figure], axis)}<figcaption>{escape(TITLES[figure])}, by "
        f"{escape(axis.name)}</figcaption></figure>"
        for figure in figures
    )
    return f"<h2>{escape(axis.name)}</h2><div class=pair>{charts}</div><p class=soft>{keys}</p>"


def _curves(outcomes: Sequence[Outcome], axis: Axis, figure: str) -> list[Curve]:
    """A curve for every combination of the other settings."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        if outcome.metrics is not None:
            values = dict(outcome.point.values)
            place = axis.values.index(values.pop(axis.name))
            found[settings_name(values)][place].append(float(outcome.metrics["after"][figure]))
    return [
        Curve(name, tuple((place, tuple(places[place])) for place in sorted(places)))
        for name, places in found.items()
    ]


def _chart(curves: Sequence[Curve], axis: Axis) -> str:
    figures = [value for curve in curves for _, values in curve.points for value in values]
    if not figures:
        return "<p class=soft>no run has finished</p>"
    low, high = min(figures), max(figures)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room
    step = (WIDTH - LEFT - RIGHT - 48) / max(len(axis.values) - 1, 1)
    x_of = [LEFT + 24 + step * place for place in range(len(axis.values))]

    def y_of(figure: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - figure) / (high - low)

    parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img>"]
    for figure, text in ticks(low, high):
        y = y_of(figure)
        parts.append(f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y:.1f} y2={y:.1f} />")
        parts.append(f"<text x={LEFT - 6} y={y + 4:.1f} text-anchor=end>{text}</text>")
    for value, x in zip(axis.values, x_of, strict=True):
        parts.append(f"<text x={x:.1f} y={HEIGHT - 12} text-anchor=middle>{escape(str(value))}</text>")
    for index, curve in enumerate(curves):
        parts += _line(curve, x_of, y_of, index)
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers between both, three to eight, and how they are written."""
    power = math.floor(math.log10((high - low) / 3))
    step = next(one for one in (5, 2, 1) if one * 10.0**power <= (high - low) / 3) * 10.0**power
    places = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [(place * step, f"{place * step:.{max(-power, 0)}f}") for place in places]


def _stroke(index: int) -> str:
    """Colour and dashes of the curve with this number."""
    dashes = DASHES[index // NUM_COLOURS % len(DASHES)]
    return f"stroke='var(--c{index % NUM_COLOURS})' stroke-width=2 stroke-dasharray='{dashes}'"


def _line(curve: Curve, x_of: Sequence[float], y_of: Callable[[float], float], index: int) -> list[str]:
    """The means joined, a bar from the least to the largest seed, a dot at each mean."""
    colour = f"var(--c{index % NUM_COLOURS})"
    means = [(x_of[place], y_of(mean(values)), values) for place, values in curve.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in means)
    parts = [f"<polyline points='{path}' fill=none {_stroke(index)} />"]
    for x, y, values in means:
        if len(values) > 1:
            parts.append(
                f"<line x1={x:.1f} x2={x:.1f} y1={y_of(min(values)):.1f} y2={y_of(max(values)):.1f} "
                f"stroke='{colour}' stroke-width=5 stroke-opacity=.35 />"
            )
        title = f"{curve.name}: {mean(values):.4f}, {len(values)} seed{'s' if len(values) > 1 else ''}"
        parts.append(
            f"<circle cx={x:.1f} cy={y:.1f} r=3.5 fill='{colour}'><title>{escape(title)}</title></circle>"
        )
    return parts
