"""Schedules that do harm are counted by their harm, and named by the seed that repeats them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.report.results import load
from benchmarks.schedules import schedules
from benchmarks.schedules.store_schedules import HarmError, run_schedule


def harmful(seed: int) -> int:
    if seed == 1:
        raise HarmError("lost")
    if seed == 2:
        raise ValueError("no such shard")
    return 10


def test_what_a_schedule_broke_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schedules, "OVER_STORES", {"store, harmed": harmful})
    monkeypatch.setattr(schedules, "OVER_DRIVERS", {"driver lease": lambda seed: 1})
    assert main(["schedules", "--schedules", "4", "--out", str(tmp_path), "--quiet"]) == 1
    result = load(tmp_path / "schedules.json")
    lost, wrong = "seed 1: HarmError: a unit is lost", "seed 2: ValueError: no such shard"
    assert result.details["failures"] == [f"store, harmed, {lost}", f"store, harmed, {wrong}"]
    assert [row[:6] for row in result.tables[0].rows] == [
        ("store, harmed", 4, 2, 1, 1, 0),
        ("driver lease", 4, 4, 0, 0, 0),
    ]
    assert "Of 4 random schedules of faults over a store, 2 leave" in result.meaning
    assert "of 4 over drivers, 4 end" in result.meaning
    assert lost in capsys.readouterr().err


@pytest.mark.slow
def test_a_seed_gives_its_schedule_again() -> None:
    assert run_schedule("as a job", 3) == run_schedule("as a job", 3) > 0
