"""A store or log that cannot be written ends a job with one line."""

from __future__ import annotations

from pathlib import Path

import pytest

import labeler.__main__ as labeler_command


def run(folder: Path, output: str, *more: str) -> int:
    (folder / "in.jsonl").write_text('{"text": "one"}\n')
    settings = [
        "teacher.engine=fake",
        "input.kind=text",
        f"input.uri='{folder}/in.jsonl'",
        f"output.uri='{output}'",
    ]
    return labeler_command.main(["run", *(part for one in settings for part in ("--set", one)), *more])


def test_a_store_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "/proc/store") == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "error: /proc/store: No such file or directory; choose another place" in told[0]


def test_a_log_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, f"{tmp_path}/store", "--log-file", f"{tmp_path}/none/run.jsonl") == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "none/run.jsonl: No such file or directory" in told[0]
    assert '"released": true' in (tmp_path / "store/driver.json").read_text()
