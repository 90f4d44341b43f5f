"""A small job with the stand-in teacher, sent by the commands that people type, and what became of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cluster.__main__ import main
from logitstore.store import LogitStore

NUM_RECORDS = 24
ALL_IDS = sorted(f"r{i}" for i in range(NUM_RECORDS))


def write_job(folder: Path, *, seconds_per_token: float = 0.0, fields: str = "") -> Path:
    """A job of 24 short texts, whose kind is found, in units of two, one or two replicas; it is slow while the
    file "slow" is there."""
    (folder / "slow").touch()
    records = [{"id": f"r{i}", "text": f"Sentence number {i} of the input."} for i in range(NUM_RECORDS)]
    (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    job = folder / "job.toml"
    job.write_text(
        f"""
[teacher]
engine = "fake"
fake = {{ seconds_per_token = {seconds_per_token}, slow_while = "{folder}/slow" }}
[input]
uri = "{folder}/in.jsonl"
id = "id"
[labels]
top_k = 8
[output]
uri = "{folder}/store"
unit_size = 2
[workers]
replicas = 2
drain_sec = 20
{fields}
"""
    )
    return job


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def stored_ids(store: Path) -> list[str]:
    return sorted(sequence.record_id for sequence in LogitStore.open(str(store)).iter_sequences())


def num_shards(store: Path) -> int:
    """Shards committed so far; 0 before there is a store."""
    return len(LogitStore.open(str(store)).shards()) if (store / "manifest.json").exists() else 0


def wait_until(condition: object, timeout_sec: float = 200.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_sec
    while not condition():
        assert time.monotonic() < deadline, f"not true within {timeout_sec} s"
        time.sleep(0.2)
