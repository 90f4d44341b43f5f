"""Segments in colours, on a terminal that shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TextIO

from logitstore.records import SEGMENT_NAMES, Segment

Paint = Callable[[int, str], str]
"""(segment, text) to the text as it is printed."""
COLOURS: dict[int, str] = {
    Segment.CONTEXT: "2",  # faint
    Segment.REASONING: "35",  # magenta
    Segment.ANSWER: "32",  # green
    Segment.TOOL: "36",  # cyan
    Segment.END: "33",  # yellow
}
"""Select Graphic Rendition by segment."""


def plain(segment: int, text: str) -> str:
    """No colour."""
    del segment
    return text


def in_colour(segment: int, text: str) -> str:
    """The segment's colour around the text, which must hold no control characters."""
    return f"\x1b[{COLOURS[segment]}m{text}\x1b[0m"


def paint_for(stream: TextIO, environ: Mapping[str, str]) -> Paint:
    """Colours where the stream is a terminal that has them and NO_COLOR is not set (no-color.org)."""
    shows_colours = stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    return in_colour if shows_colours else plain


def legend(paint: Paint) -> list[str]:
    """A line that names the colours; none where there are none."""
    if paint is plain:
        return []
    return ["colours: " + ", ".join(paint(number, name) for number, name in enumerate(SEGMENT_NAMES))]
