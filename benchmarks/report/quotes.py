"""Figures that documents quote, tied to the results they come from.

A quoted figure is a link to its line of the results page, and the link's text is the figure:

    a row takes [131 B](benchmarks/RESULTS.md#storage.capture_label_bytes_k64)

The text is a number and what stands around it ("131 B", "-20%", "about 1,200 rows/s"). `rewrite` puts the
present value there, with as many digits after the point as were written; `make bench` does it, and a test
fails where the text and the committed result differ, or where a document has a measured figure without a
link.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.report.results import Result

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "labeler" / "README.md",
    ROOT / "logitstore" / "README.md",
    ROOT / "logitstore" / "FORMAT.md",
    ROOT / "cluster" / "README.md",
    ROOT / "benchmarks" / "README.md",
)

LINK = re.compile(r"\[(?P<text>[^\]\n]+)\]\((?P<page>[^()\s#]*RESULTS\.md)#(?P<part>\w+)\.(?P<figure>\w+)\)")
NUMBER = re.compile(r"(?P<number>\d[\d,]*(?:\.(?P<decimals>\d+))?(?P<exponent>e[+-]?\d+)?)(?P<percent>%?)")


def rewrite(document: Path, results: Mapping[str, Result]) -> list[str]:
    """Put the figures' present values into the document; what was changed, for people."""
    text = document.read_text(encoding="utf-8")
    changes: list[str] = []

    def renewed(link: re.Match[str]) -> str:
        old = link["text"]
        new = quoted(old, value_of(link, results))
        if new != old:
            changes.append(f"{document.name}: {link['part']}.{link['figure']}: {old} is now {new}")
        return f"[{new}]({link['page']}#{link['part']}.{link['figure']})"

    renewed_text = LINK.sub(renewed, text)
    if changes:
        document.write_text(renewed_text, encoding="utf-8")
    return changes


def wrong_quotes(text: str, results: Mapping[str, Result]) -> list[str]:
    """One line for every link whose text is not its figure's value, or whose figure does not exist."""
    wrong = []
    for link in LINK.finditer(text):
        name = f"{link['part']}.{link['figure']}"
        try:
            right = quoted(link["text"], value_of(link, results))
        except (KeyError, ValueError) as error:
            wrong.append(f"{name}: {error}")
            continue
        if right != link["text"]:
            wrong.append(f"{name} is quoted as {link['text']!r}, measured {right!r}")
    return wrong


def value_of(link: re.Match[str], results: Mapping[str, Result]) -> float:
    """The figure's value; KeyError if there is none."""
    part = link["part"]
    if part not in results:
        raise KeyError(f"no result named {part}; there are {', '.join(results) or 'none'}")
    return results[part].figure(link["figure"]).value


def quoted(text: str, value: float) -> str:
    """`text` with its one number replaced by `value`, in the same form. ValueError without a number."""
    found = NUMBER.search(text)
    if found is None:
        raise ValueError(f"the text {text!r} of the link holds no number")
    decimals = len(found["decimals"] or "")
    shown = abs(value) * 100 if found["percent"] else abs(value)
    if found["exponent"]:
        mantissa, _, exponent = f"{shown:.{decimals}e}".partition("e")
        number = f"{mantissa}e{int(exponent)}"
    else:
        number = f"{shown:,.{decimals}f}"
    return f"{text[: found.start()]}{number}{found['percent']}{text[found.end() :]}"
