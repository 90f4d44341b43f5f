"""The form of a measured result: what is written is what is read, and nothing wrong is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.report.results import Figure, Result, load, load_all, publish, save, time_calls


def a_result(**changes: object) -> Result:
    figures = (
        Figure.of("bytes_per_token_k64", 131.25, "B/token", is_ratio=True, better="lower"),
        Figure.of("seconds", [3.0, 1.0, 2.5, 2.0], "s"),
    )
    result = Result.of(
        "storage",
        meaning="smaller is cheaper",
        columns=("K", "B/token"),
        rows=((64, 131.25),),
        figures=figures,
    )
    return dataclasses.replace(result, **changes)


def test_a_saved_result_is_read_back_as_it_was(tmp_path: Path) -> None:
    result = a_result(notes=("one assumption",), plots=("storage.svg",))
    path = save(result, tmp_path)
    assert path == tmp_path / "storage.json"
    assert load(path) == result
    assert load_all(tmp_path) == {"storage": result}
    assert [file.name for file in tmp_path.iterdir()] == ["storage.json"]


def test_a_figure_holds_the_median_and_the_range() -> None:
    seconds = a_result().figure("seconds")
    assert (seconds.value, seconds.spread, seconds.repetitions) == (2.25, 2.0, 4)
    single = a_result().figure("bytes_per_token_k64")
    assert (single.value, single.spread, single.repetitions) == (131.25, 0.0, 1)


def test_a_result_says_what_it_was_measured_on() -> None:
    result = a_result()
    assert int(result.hardware["cores"]) >= 1
    assert result.hardware["cpu"]
    assert result.versions["numpy"].count(".") == 2
    assert result.date.endswith("+00:00")


def test_an_unknown_figure_and_a_repeated_one_are_errors() -> None:
    with pytest.raises(KeyError, match="bytes_per_token_k64"):
        a_result().figure("bytes_per_token_k65")
    twice = (Figure.of("x", 1.0, "s"), Figure.of("x", 2.0, "s"))
    with pytest.raises(ValueError, match="twice"):
        Result.of("storage", meaning="", columns=(), rows=(), figures=twice)
    with pytest.raises(ValueError, match="no samples"):
        Figure.of("x", [], "s")


def test_a_value_that_json_cannot_hold_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    save(a_result(), tmp_path)
    broken = a_result(figures=(Figure.of("x", float("nan"), "s"),))
    with pytest.raises(ValueError, match="JSON compliant"):
        save(broken, tmp_path)
    assert load(tmp_path / "storage.json").figure("seconds").value == 2.25


def test_another_json_file_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"figures": []}')
    with pytest.raises(ValueError, match=r"other\.json is not a benchmark result"):
        load_all(tmp_path)


def test_publish_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(a_result(notes=("an assumption",)), tmp_path)
    printed = capsys.readouterr().out
    assert "131.2" in printed
    assert "an assumption" in printed
    publish(a_result(), tmp_path, quiet=True)
    assert capsys.readouterr().out == ""


def test_timed_calls_are_counted_and_the_warm_up_is_not() -> None:
    calls = []
    seconds = time_calls(lambda: calls.append(1), repetitions=3, warm_up=2)
    assert len(seconds) == 3
    assert len(calls) == 5
    assert all(second >= 0 for second in seconds)
