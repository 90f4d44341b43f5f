"""Plots are committed: they must be small to review, and the same picture as drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from benchmarks.report.plots import compact, plot


def shapes(svg: str) -> list[tuple[str, dict[str, str]]]:
    elements = (element for element in ElementTree.fromstring(svg).iter())
    inside_metadata = ("metadata", "RDF", "Work", "type", "format", "creator", "Agent", "title")
    kept = [element for element in elements if element.tag.rpartition("}")[2] not in inside_metadata]
    return [
        (element.tag, {name: " ".join(value.split()) for name, value in element.items()}) for element in kept
    ]


def test_a_plot_has_few_lines_and_the_same_bytes_each_time(tmp_path):
    for name in ("a.svg", "b.svg"):
        with plot(tmp_path / name, "Bytes", "K", "B per token") as axes:
            axes.plot([8, 16, 32], [20.0, 39.0, 71.0], marker="o", label="lossless")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    assert drawn.count("\n") < 60
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_compacting_keeps_every_shape():
    drawn = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg">
 <metadata>
  <title>by</title>
 </metadata>
 <g id="x">
  <path d="M 0 1
L 2 3
z
" style="fill: none"/>
  <text>two
words</text>
 </g>
</svg>
"""
    assert shapes(compact(drawn)) == shapes(drawn)
    assert "two\nwords" in compact(drawn)
    assert "by" not in compact(drawn)
