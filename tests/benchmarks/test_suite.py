"""The whole: what fails is named and loses nothing of the others, and nothing runs on for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import suite
from benchmarks.__main__ import MEASUREMENTS, build_parser, main
from benchmarks.jobs.processes import end_session
from benchmarks.report import check
from benchmarks.report.results import load, load_all, save

PART = ["--capture-only", "--top-k", "8"]


def wait_for_the_end(process: psutil.Process) -> None:
    """Until it is gone, or a zombie that nobody has asked for yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def test_every_measurement_is_a_part_of_the_whole() -> None:
    assert set(suite.PARTS) == set(MEASUREMENTS)
    for part in ("all", "recommend"):
        assert build_parser([part]).parse_args([part, "--quick", "--temperature", "2"]).temperature == 2


def test_no_part_writes_the_page_alone(tmp_path: Path) -> None:
    assert main(["all", "--parts", "", "--out", str(tmp_path), "--page", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text().startswith("# Results")


def test_the_reference_holds_all_that_can_be_compared() -> None:
    for part, result in load_all(check.REFERENCE.parent).items():
        comparable = any(check.is_comparable(figure) for figure in result.figures)
        assert comparable == (part in suite.REFERENCE_PARTS), part


@pytest.mark.slow
def test_a_part_that_fails_loses_nothing_of_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["all", "--quick", *PART, "--parts", "storage", "--out", str(tmp_path)]
    missing = ["--capture", str(tmp_path / "missing.npz")]
    assert main([*arguments, "--quiet"]) == 0
    before = load(tmp_path / "storage.json")
    assert main([*arguments, *missing]) == 1
    said = capfd.readouterr().err
    assert "FAILED: storage; their older results, if any, stand" in said
    assert "missing.npz is no file; give the npz file of a capture" in said
    assert load(tmp_path / "storage.json") == before
    page = (tmp_path / "RESULTS.md").read_text()
    assert "Failed in the last run, so missing or older than the rest: storage." in page
    assert '<a id="storage.capture_label_bytes_k8"></a>' in page


def test_a_part_that_hangs_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    inner = "import subprocess, sys; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)"
    leader = subprocess.Popen(
        [sys.executable, "-c", f"{inner}; import time; time.sleep(600)"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert leader.stdout is not None
    sleeper = psutil.Process(int(leader.stdout.readline()))
    end_session(leader)
    assert leader.returncode == -9
    wait_for_the_end(sleeper)
    leader.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "check"])
def test_a_suite_that_is_told_to_stop_ends_its_part(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "benchmarks", name, "--parts", "scale", "--out", str(tmp_path)]
    whole = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert whole.stderr is not None
    assert whole.stderr.readline() == "bench: scale ...\n"
    while not (parts := psutil.Process(whole.pid).children()):
        time.sleep(0.01)
    whole.terminate()
    assert whole.wait(60) == 143
    wait_for_the_end(parts[0])
    whole.stderr.close()


def test_an_interrupt_has_its_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "measure", interrupted)
    assert main(["all", "--out", str(tmp_path), *PART]) == 130


def test_the_time_limit_of_a_part_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "PART_LIMIT_SEC", 0.3)
    assert suite.measure(["storage"], tmp_path, PART) == ["storage"]
    assert not (tmp_path / "storage.json").exists()


@pytest.mark.slow
def test_the_guard_measures_anew_and_fails_where_a_figure_was_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real part, against its own result and against one in which a size was a fifth smaller."""

    def measure(parts: list[str], out: Path, options: list[str]) -> list[str]:
        return [part for part in parts if main([part, "--out", str(out), *options, *PART])]

    monkeypatch.setattr(check, "measure", measure)
    reference = tmp_path / "reference"
    assert measure(["storage"], reference, ["--quick", "--quiet"]) == []
    arguments = ["check", "--reference", str(reference), "--out", str(tmp_path / "fresh")]
    assert main(arguments) == 0
    assert "ratios lost more than 15% beyond its noise" in capsys.readouterr().err

    result = load(reference / "storage.json")
    figures = [
        dataclasses.replace(figure, value=figure.value * 0.8)
        if figure.name == "capture_label_bytes_k8"
        else figure
        for figure in result.figures
    ]
    save(dataclasses.replace(result, figures=tuple(figures)), reference)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "lost more than 15% in 3 attempts: storage.capture_label_bytes_k8" in printed.err
    assert "+25.0%" in printed.out
