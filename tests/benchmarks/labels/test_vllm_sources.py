"""Changes of vLLM's sources are found and shown; the installed one is the one that is known."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("vllm")

from benchmarks.__main__ import main
from benchmarks.labels import vllm_sources

NAME = "vllm.v1.engine:FinishReason"


@pytest.mark.slow
def test_the_installed_vllm_is_as_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources"]) == 0
    output = capsys.readouterr().out
    assert output.count("as known") == len(vllm_sources.SOURCES)
    assert "CHANGED" not in output


def test_a_changed_source_is_shown_line_by_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    lines = vllm_sources.source_lines(NAME)
    assert lines is not None
    record = json.loads(vllm_sources.RECORD.read_text())
    # As if the last line were new, and two lines had stood at the head.
    record["lines"][NAME] = ["00", "11", *record["lines"][NAME][:-1]]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    monkeypatch.setattr(vllm_sources, "RECORD", path)
    monkeypatch.setattr(vllm_sources, "SOURCES", {NAME: "test", "vllm.exceptions:Gone": "test"})
    assert main(["sources"]) == 1
    output = capsys.readouterr().out
    assert f"{NAME} (test): CHANGED\n    - 2 lines from line 1 (blank ones not counted)\n" in output
    assert f"\n    + {lines[-1]}\n" in output
    assert output.count("\n    + ") == 1
    assert "vllm.exceptions:Gone (test): CHANGED\n    it is gone" in output
    monkeypatch.setattr(vllm_sources, "SOURCES", {NAME: "test"})
    assert main(["sources", "--write"]) == 0
    assert main(["sources"]) == 0
