"""A record edited after it was labeled: told, found by the verifier, labeled again when asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.jobs.running_job import verify
from logitstore.store import LogitStore
from tests.labeler.jobs import labeled_ids, overrides_for, run_job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def write(path: Path, texts: list[str]) -> None:
    rows = [{"uid": str(i), "prompt": f"question {i}", "response": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def text_of(store: Path, record_id: str) -> str:
    (found,) = [one for one in LogitStore.open(store).iter_sequences() if one.record_id == record_id]
    return bytes(int(i) for i in found.token_ids_T if i < 256).decode()


def test_changed_records_are_told_and_labeled_again(tmp_path: Path) -> None:
    texts = [f"answer {i}" for i in range(12)]
    write(tmp_path / "in.jsonl", texts)
    settings = overrides_for(tmp_path, "output.unit_size=4", "workers.replicas=1")
    assert run_job(settings).returncode == 0
    texts[5] = "quite another answer"
    write(tmp_path / "in.jsonl", texts)
    told = run_job(settings)
    assert told.returncode == 0
    assert "1 records differ from what was planned or labeled" in told.stderr
    assert "answer 5" in text_of(tmp_path / "store", "5")
    check = verify(tmp_path / "store", tmp_path / "in.jsonl")
    assert check.returncode == 1
    assert "content_changed" in check.stdout
    again = run_job(settings, "--relabel-changed")
    assert again.returncode == 0, again.stderr
    assert "quite another answer" in text_of(tmp_path / "store", "5")
    assert sorted(labeled_ids(tmp_path / "store"), key=int) == [str(i) for i in range(12)]
    assert verify(tmp_path / "store", tmp_path / "in.jsonl").returncode == 0
    assert "differ from what" not in run_job(settings).stderr
