"""Passes over prompts, killed at every change of the file system and then repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from labeler.__main__ import main
from tests.killing import run_killed
from tests.labeler.curation.test_sift import QUESTIONS, prompts

pytestmark = pytest.mark.slow
PASSES = {
    "dedupe": ["dedupe", "{in}", "--out", "{out}", "--quiet"],
    "decontaminate": ["decontaminate", "{in}", "--against", "{evaluation}", "--out", "{out}", "--quiet"],
}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_killed_anywhere_ends_as_the_unbroken_one_when_it_is_repeated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs and its report, byte by byte; the kept records have their name only once all is done."""
    monkeypatch.setattr("labeler.curation.sift.BLOCK_RECORDS", 3)
    given = tmp_path / "given"
    given.mkdir()
    lines = [json.dumps(record) for record in prompts([*QUESTIONS, QUESTIONS[2] + "!", QUESTIONS[5]])]
    (given / "in.jsonl").write_text("\n".join(lines) + "\n")
    (given / "evaluation.jsonl").write_text(json.dumps({"prompt": QUESTIONS[3]}) + "\n")
    root = tmp_path / "now"
    paths = {"in": given / "in.jsonl", "evaluation": given / "evaluation.jsonl", "out": root / "out.jsonl"}
    words = [word.format(**paths) for word in PASSES[name]]

    def outputs() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(root.iterdir())}

    root.mkdir()
    status, num_changes, printed = run_killed(main, words, root, None)
    assert status == 0, printed
    whole = outputs()
    assert num_changes > 3
    for kill_at in range(num_changes):
        shutil.rmtree(root)
        root.mkdir()
        assert run_killed(main, words, root, kill_at)[0] is None
        if paths["out"].exists():
            assert paths["out"].read_bytes() == whole["out.jsonl"]
        status, _, printed = run_killed(main, words, root, None)
        assert status == 0, f"{kill_at}: {printed}"
        found = {name: data for name, data in outputs().items() if not name.startswith(".")}
        assert found == whole, kill_at
