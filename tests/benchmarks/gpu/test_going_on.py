"""`bench gpu` in several calls: what is there is kept, and only where it still holds."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.__main__ import main
from benchmarks.gpu import command, kept
from benchmarks.gpu.engines import run_within
from benchmarks.gpu.kernels import Timing, table_of
from benchmarks.gpu.sections import Part, Section
from benchmarks.report.results import ResultTable, load_all


class Bench:
    """`bench gpu` on made-up sections, each measured in no time."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.times: Counter[str] = Counter()
        """How often each was measured."""
        self.faults: set[str] = set()
        """Titles that fail, and lines that do."""
        self.sections = [
            self.section("capture", "first", budget_sec=30, settings="K = 64"),
            self.section("loss", "second", budget_sec=60),
            self.section("labeling", "third", budget_sec=300),
        ]

    def section(self, part: Part, title: str, budget_sec: int, settings: str = "") -> Section:
        def measure() -> ResultTable:
            self.times[title] += 1
            if title in self.faults:
                raise RuntimeError("no kernel image\nand more")
            lost = f"{title}'s line" in self.faults
            return table_of(title, [Timing("one read", None if lost else 0.5 + self.times[title])])

        return Section(part, title, budget_sec, settings, measure)

    def run(self, *options: str) -> int:
        self.times.clear()
        return main(["gpu", "--out", str(self.out), *options])

    @property
    def saved(self) -> list[str]:
        """Titles of the tables that were saved; the first stands in the result's own line."""
        result = load_all(self.out)["gpu"]
        assert len(result.tables) == len(result.details["sections"])  # type: ignore[arg-type]
        return list(result.details["sections"])  # type: ignore[call-overload]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(command, "need_gpu", lambda: None)
    monkeypatch.setattr(kept, "card", lambda: "this card")
    monkeypatch.setattr(command, "taken", lambda *_: ())
    monkeypatch.setattr(command, "sections", lambda *_: made.sections)
    return made


def test_a_second_call_does_what_is_missing_or_has_failed_lines(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine that is lent for minutes leaves what it got to, and takes up from there."""
    bench.faults = {"second", "third's line"}
    assert bench.run() == 1
    assert bench.saved == ["first", "third"]
    note = "second: not measured, RuntimeError: no kernel image."
    assert note in load_all(bench.out)["gpu"].notes
    said = capsys.readouterr().out
    assert note in said
    assert "1 of 3 sections on this card, 0 left for lack of time, 2 failed" in said
    assert "Give the same command again" in said
    bench.faults = set()
    assert bench.run() == 0
    assert bench.times == {"second": 1, "third": 1}
    assert bench.saved == ["first", "second", "third"]
    result = load_all(bench.out)["gpu"]
    assert note not in result.notes
    assert [figure.value for figure in result.figures] == [1.5, 1.5, 1.5]
    said = capsys.readouterr().out
    assert "first: kept" in said
    assert "second: to measure, in at most 60 s" in said
    assert bench.run() == 0
    assert not bench.times


def test_each_section_is_saved_before_the_next_begins(bench: Bench) -> None:
    seen = []

    def interrupted() -> ResultTable:
        seen.extend(bench.saved)
        raise KeyboardInterrupt

    whole = bench.sections[2]
    bench.sections[2] = replace(whole, measure=interrupted)
    assert bench.run() == 130
    assert seen == bench.saved == ["first", "second"]
    bench.sections[2] = whole
    assert bench.run() == 0
    assert bench.times == {"third": 1}


@pytest.mark.parametrize(
    ("what", "other", "words"),
    [
        ("card", lambda: "NVIDIA A100, CUDA 13.0", "card is NVIDIA A100, CUDA 13.0 and was this card"),
        ("code_digest", lambda: "0123456789ab", "code is 0123456789ab and was "),
    ],
)
def test_another_card_or_version_is_measured_anew(
    bench: Bench,
    what: str,
    other: Callable[[], str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench.run() == 0
    monkeypatch.setattr(kept, what, other)
    assert bench.run("--parts", "loss") == 0
    assert (
        f"Nothing is kept: {bench.out / 'gpu.json'} is of something else ({words}" in capsys.readouterr().out
    )
    assert bench.saved == ["second"]


def test_another_choice_measures_anew_what_depends_on_it(bench: Bench) -> None:
    assert bench.run() == 0
    bench.sections[0] = replace(bench.sections[0], settings="K = 16")
    assert bench.run("--parts", "loss") == 0
    assert not bench.times
    assert bench.saved == ["first", "second", "third"]
    assert bench.run() == 0
    assert bench.times == {"first": 1}


def test_parts_and_a_limit_choose_what_is_begun(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run("--parts", "capture,labeling", "--limit", "200") == 1
    assert bench.times == {"first": 1}
    assert "1 of 2 sections on this card, 1 left for lack of time, 0 failed" in capsys.readouterr().out
    assert bench.run("--limit", "200") == 1
    assert bench.times == {"second": 1}
    assert bench.run("--limit", "400") == 0
    assert bench.times == {"third": 1}
    assert bench.saved == ["first", "second", "third"]
    with pytest.raises(SystemExit):
        bench.run("--parts", "capture,kernels")
    assert "no such part: kernels; there are capture, loss, head, labeling" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"tables": [], "figures": []}', "{}"])
def test_a_file_that_cannot_be_read_keeps_nothing(
    bench: Bench, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run() == 0
    (bench.out / "gpu.json").write_text(text)
    assert bench.run() == 0
    assert len(bench.times) == 3
    assert "gpu.json is no result of this version" in capsys.readouterr().out


def test_an_engine_that_does_not_get_ready_is_stopped() -> None:
    with pytest.raises(RuntimeError, match="was stopped, as it took more than 1 s"):
        run_within(1, [sys.executable, "-c", "import time; time.sleep(600)"])
    assert not [one for one in psutil.Process().children() if "time.sleep(600)" in one.cmdline()]
    with pytest.raises(RuntimeError, match="ended with status 3"):
        run_within(100, [sys.executable, "-c", "raise SystemExit(3)"])
