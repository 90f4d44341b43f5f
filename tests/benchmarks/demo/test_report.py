"""The report: figures where a reader looks for them, and data that can never become markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.demo.answers import TEMPERATURE, Answers
from benchmarks.demo.demo import lack_of_learning
from benchmarks.demo.report import (
    PARQUET_ROWS,
    Evaluation,
    Report,
    Stage,
    StoreSummary,
    Training,
    WrittenShard,
    labeling_rates,
    mass_chart,
    write_report,
)
from benchmarks.demo.svg_chart import Bar, Series, bar_chart, line_chart
from logitstore.manifest.fields import InputInfo, LabelSpec, Manifest, TeacherInfo, TokenizerInfo
from logitstore.tools.inspection import MassAtK

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def a_manifest(model: str) -> Manifest:
    return Manifest(
        teacher=TeacherInfo(model, None, "sha256:0", "float32", None, "vllm", "0.32", "in_engine"),
        tokenizer=TokenizerInfo("sha256:1", 49152),
        labels=LabelSpec(49152, 64, (1.0, 2.0, 4.0), "gap_f16", "generate", "response"),
        input=InputInfo("in.jsonl", "prompt", {"prompt": "prompt"}),
        created="2026-01-01T00:00:00+00:00",
    )


def a_report(text: str = "teacher", stores: tuple[StoreSummary, ...] | None = None) -> Report:
    shards = (WrittenShard(text, 100.0, 110.0, 500), WrittenShard("worker 1", 101.0, 121.0, 400))
    mass = (MassAtK(1, {"1": 0.5, "2": 0.1}, 0.0), MassAtK(4, {"1": 0.75, "2": 0.2}, 0.1))
    store = StoreSummary(f"labels/{text}", a_manifest(text), 20, 900, 118_000, 3, shards, mass, 186.4)
    before, teacher = Evaluation(9.876, 10.8, 0.01, 0.02, 0.3), {"cross_entropy": 1.5, "accuracy": 0.625}
    training, text_alone = (
        Training((1, 2, 3), (10.5, 8.0, 6.25), before, after, 6_500_000, 90.0, teacher, ((0, 9.5), (3, kl)))
        for kl, after in (
            (3.0, Evaluation(3.21, 6.0, 0.25, 0.2, 0.1)),
            (4.5, Evaluation(4.4, 6.5, 0.2, 0.19, 0.1)),
        )
    )
    answers = (Answers("r", f"Why? {text}", "Because.", ("the the", "it is", f"Because {text}")),)
    stages = (
        Stage("label", f"python -m labeler {text}", 61.0),
        Stage("train", "python -m trainer", 1.0),
    )
    names = ("before", "text alone", "distilled")
    return Report(stores or (store,), training, text_alone, names, answers, stages, {"cpu": text, "cores": "2", "memory_gib": "8", "gpu": "none", "system": "Linux"}, {"numpy": "2"}, "2026-01-01")  # fmt: skip


@pytest.mark.parametrize(
    ("kl", "alone_kl", "problem"),
    [
        (5.0, 5.5, ""),
        (6.9, 7.0, "KL(teacher, student) fell by 30% only, not by more than 33%"),
        (10.0, 11.0, "KL(teacher, student) fell by -1% only, not by more than 33%"),
        (float("nan"), 5.0, "KL(teacher, student) fell by nan% only, not by more than 33%"),
        (4.4, 4.4, "KL(teacher, student) is 4.4 nats, no lower than 4.4 on the text alone"),
    ],
)
def test_a_demo_that_shows_nothing_says_so(kl: float, alone_kl: float, problem: str) -> None:
    report = a_report()
    distilled, alone = (
        replace(student, after=replace(student.after, kl=value))
        for student, value in ((report.training, kl), (report.text_alone, alone_kl))
    )
    assert lack_of_learning(replace(report, training=distilled, text_alone=alone)) == problem


class Elements(HTMLParser):
    """Names of the elements and their attributes' names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}


def render(report: Report, tmp_path: Path, page: str = "<p>viewer</p>") -> str:
    path = tmp_path / "report.html"
    size = write_report(report, page, path)
    html = path.read_text()
    assert size == len(html.encode())
    return html


def test_the_page_shows_the_figures(tmp_path: Path) -> None:
    html = render(a_report(), tmp_path)
    text = unescape(re.sub(r"<[^>]*>", " ", html))
    for figure in (
        "131.1 B",
        "67%",
        "55%",
        "6,500,000 parameters",
        "3 steps",
        "61.0",
        "penumbra train sweep",
    ):
        assert figure in text
    table = [[cell.strip() for cell in re.findall(r"<td>([^<]*)</td>", row)] for row in html.split("<tr>")]
    assert ["KL(teacher, student), nats", "9.876", "4.400", "3.210", "0.000"] in table
    assert ["first choice is the actual token", "2.0%", "19.0%", "20.0%", "62.5%"] in table
    assert ["calibration error", "0.300", "0.100", "0.100", ""] in table


def test_students_are_named_however_many_there_are(tmp_path: Path) -> None:
    answers = (Answers("r", "Why?", "Because.", ("it is", "the the")),)
    html = render(replace(a_report(), students=("text alone", "distilled"), answers=answers), tmp_path)
    said = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html)
    assert said == [("teacher", "Because."), ("text alone", "it is"), ("distilled", "the the")]


def test_captions_say_what_was_measured(tmp_path: Path) -> None:
    text = unescape(re.sub(r"<[^>]*>", " ", render(a_report(), tmp_path)))
    assert f"T = {TEMPERATURE} with one seed" in text
    assert f"first {PARQUET_ROWS:,} rows or so" in text
    assert "same rows" not in text


def test_no_figure_of_the_students_stands_twice(tmp_path: Path) -> None:
    html = render(a_report(), tmp_path)
    assert [
        figure for figure in ("9.876", "4.400", "3.210", "10.800", "6.500") if html.count(figure) != 1
    ] == []
    labels = re.findall(r"<text x=[^>]*>([^<0-9]+)</text>", html)
    bars = [label for label in labels if label in ("teacher", "store", "Parquet, tuned")]
    assert bars == ["teacher", "store", "teacher", "Parquet, tuned"]


def test_rates_are_filled_and_a_single_point_is_a_dot() -> None:
    svg = line_chart("c", [Series("s", [0, 0, 10, 10], [0, 5, 5, 0])], "x", "y", filled=True)
    (points,) = re.findall(r'<polygon class="band c0" points="([^"]+)"', svg)
    assert points.split()[0] == "56.0,216.0"
    assert points.split()[-1] == "390.0,216.0"
    assert line_chart("c", [Series("s", [1], [2])], "x", "y").count("<circle") == 1


def test_nothing_from_data_becomes_markup(tmp_path: Path) -> None:
    harmless = Elements(render(a_report(), tmp_path))
    hostile_html = render(a_report(HOSTILE), tmp_path, page=f"<p>{HOSTILE}</p>")
    hostile = Elements(hostile_html)
    assert hostile.names == harmless.names
    assert hostile.attributes == harmless.attributes
    assert "script" not in hostile.names
    assert hostile_html.count("&lt;script&gt;alert(1)") >= 6


def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    html = render(a_report(), tmp_path)
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import""", html.replace("srcdoc=", ""))


def test_rates_are_rows_over_the_time_since_the_last_unit() -> None:
    shards = [WrittenShard("a", 100.0, 110.0, 500), WrittenShard("a", 108.0, 118.0, 400), WrittenShard("b", 105.0, 110.0, 50)]  # fmt: skip
    first, second = labeling_rates(shards)
    assert first.label == "a"
    assert list(first.xs) == [0, 0, 0, 10, 10, 10, 10, 18, 18]
    assert list(first.ys) == [0, 0, 50, 50, 0, 0, 50, 50, 0]
    assert max(second.ys) == 10
    area = sum((x1 - x0) * y for x0, x1, y in zip(first.xs, first.xs[1:], first.ys, strict=False))
    assert area == pytest.approx(900)


def test_a_line_chart_scales_its_points() -> None:
    svg = line_chart("c", [Series("s", [0, 10], [0, 100])], "x", "y")
    (points,) = re.findall(r'points="([^"]+)"', svg)
    start, end = ([float(v) for v in point.split(",")] for point in points.split())
    assert start == [56.0, 216.0]
    assert end[0] == 390.0
    assert 28 < end[1] < 50
    assert line_chart("c", [], "x", "y").count("no data") == 1
    with pytest.raises(ValueError, match="not finite"):
        line_chart("c", [Series("s", [0], [float("inf")])], "x", "y")


def test_bars_are_proportional() -> None:
    svg = bar_chart("c", [Bar("a", 4.0), Bar("b", 1.0), Bar("c", 0.0)], "y")
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"', svg)]
    assert heights[0] == pytest.approx(4 * heights[1], rel=0.01)
    assert heights[2] == 0


def test_the_mass_is_drawn_over_the_logarithm_of_k() -> None:
    (store,) = a_report().stores
    svg = mass_chart(store)
    first, second = re.findall(r'points="([^"]+)"', svg)
    assert [float(point.split(",")[0]) for point in first.split()] == [56.0, 390.0]
    ys = [216 - float(point.split(",")[1]) for line in (first, second) for point in line.split()]
    assert ys == pytest.approx([ys[1] * mass / 0.75 for mass in (0.5, 0.75, 0.1, 0.2)], abs=0.2)
    assert re.findall(r'<text x="(?:56|390)\.0" y="232">(\d)</text>', svg) == ["1", "4"]
