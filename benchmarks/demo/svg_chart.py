"""Small inline SVG charts for the report; they take their colours from the page and follow its dark mode.

Everything that comes from data is escaped. Sizes are in units of the viewBox, about CSS pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 28, 44


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: points in the order of x."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps a range of values to a range of coordinates, with round ticks."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        raw_step = (self.high - self.low) / about
        magnitude = 10 ** math.floor(math.log10(raw_step))
        step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw_step * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [(first + i) * step for i in range(count)]


def line_chart(
    name: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    x_names: Mapping[float, str] | None = None,
    *,
    filled: bool = False,
) -> str:
    """Lines over a common x axis; y starts at zero. `name` is what a screen reader says.

    `filled` fills the area below each line as well. A line of one point is a dot.
    `x_names` are ticks with texts of their own, for an axis that is not linear in what it shows.
    """
    points = [(x, y) for one in series for x, y in zip(one.xs, one.ys, strict=True)]
    if not points:
        return _no_data(name)
    if not all(math.isfinite(x) and math.isfinite(y) for x, y in points):
        raise ValueError(f"chart {name!r} holds a value that is not finite; leave such points out")
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_high = max(*(y for _, y in points), 0.0) or 1.0
    x = _Scale(x_low, x_high if x_high > x_low else x_low + 1, LEFT, WIDTH - RIGHT)
    y = _Scale(0.0, y_high * 1.06, HEIGHT - BOTTOM, TOP)
    ticks = x_names or {tick: _number(tick) for tick in x.ticks(5)}
    parts = [_axes(x, y, x_label, y_label, ticks)]
    for index, one in enumerate(series):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(one.xs, one.ys, strict=True))
        if filled:
            ground = f"{x(one.xs[0]):.1f},{y(0):.1f} {path} {x(one.xs[-1]):.1f},{y(0):.1f}"
            parts.append(f'<polygon class="band c{index % 6}" points="{ground}"/>')
        parts.append(f'<polyline class="line c{index % 6}" points="{path}"/>')
        if len(one.xs) == 1:
            parts.append(
                f'<circle class="bar c{index % 6}" cx="{x(one.xs[0]):.1f}" cy="{y(one.ys[0]):.1f}" r="4"/>'
            )
    if len(series) > 1:
        parts.append(_legend([one.label for one in series]))
    return _svg(name, parts)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar with its value written above."""

    label: str
    value: float
    color: int = 0
    """Bars of one meaning share a colour."""


def bar_chart(name: str, bars: Sequence[Bar], y_label: str, colors: Sequence[str] = ()) -> str:
    """Bars side by side; y starts at zero. `colors` names what each colour means."""
    if not bars:
        return _no_data(name)
    x = _Scale(0, len(bars), LEFT, WIDTH - RIGHT)
    y = _Scale(0.0, (max(bar.value for bar in bars) or 1.0) * 1.15, HEIGHT - BOTTOM, TOP)
    parts = [_axes(x, y, "", y_label, {})]
    for index, bar in enumerate(bars):
        left, width, top = x(index + 0.2), x(0.6) - x(0), y(bar.value)
        middle = left + width / 2
        parts.append(
            f'<rect class="bar c{bar.color % 6}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{y(0) - top:.1f}"/>'
            f'<text class="value" x="{middle:.1f}" y="{top - 5:.1f}">{bar.value:.3g}</text>'
        )
        for row, words in enumerate(bar.label.split("\n")):
            parts.append(f'<text x="{middle:.1f}" y="{y(0) + 16 + 14 * row:.1f}">{escape(words)}</text>')
    if colors:
        parts.append(_legend(colors))
    return _svg(name, parts)


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str, x_names: Mapping[float, str]) -> str:
    parts = []
    for tick in y.ticks(4):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{at + 4:.1f}">{_number(tick)}</text>')
    for tick, text in x_names.items():
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}">{escape(text)}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="label" x="{middle_x}" y="{HEIGHT - 8}">{escape(x_label)}</text>')
    parts.append(
        f'<text class="label" transform="translate(12 {middle_y}) rotate(-90)">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _legend(labels: Sequence[str]) -> str:
    """Names of the lines, side by side above the plot."""
    parts = []
    width = (WIDTH - LEFT - RIGHT) / len(labels)
    for index, label in enumerate(labels):
        at = LEFT + width * index
        parts.append(
            f'<rect class="bar c{index % 6}" x="{at:.1f}" y="4" width="11" height="11"/>'
            f'<text class="name" x="{at + 16:.1f}" y="14">{escape(label)}</text>'
        )
    return "".join(parts)


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _svg(name: str, parts: Sequence[str]) -> str:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
    return head + "".join(parts) + "</svg>"


def _no_data(name: str) -> str:
    return _svg(name, [f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}">no data</text>'])
