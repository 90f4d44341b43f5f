"""Store and weights against the disks of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from labeler.config.loading import JobConfig
from labeler.planning.fit import disks
from labeler.planning.fit.disks import BYTES_PER_TEXT_TOKEN, disk_lines, store_bytes_at_most


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def a_job(**sections: dict[str, Any]) -> JobConfig:
    document: dict[str, Any] = {
        "teacher": {"engine": "fake"},
        "input": {"uri": "in.jsonl", "kind": "text"},
        "output": {"uri": "runs/store"},
    }
    return JobConfig.model_validate(
        {name: document.get(name, {}) | sections.get(name, {}) for name in {*document, *sections}}
    )


def test_a_store_larger_than_its_disk_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []

    def usage(folder: Path) -> Usage:
        asked.append(folder)
        return Usage(10**12, 0, 5 * 10**9)

    monkeypatch.setattr(disks.shutil, "disk_usage", usage)
    job = a_job(output={"uri": str(tmp_path / "new" / "store")})
    assert disk_lines(job, 4e9) == []
    (line,) = disk_lines(job, 6e9)
    assert asked[-1] == tmp_path, "the folder that is there already"
    assert "needs 6.0 GB" in line
    assert "output.uri" in line
    assert disk_lines(a_job(output={"uri": "s3://bucket/store"}), 6e9) == []


def test_weights_that_are_still_to_be_fetched_are_held_against_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("labeler.planning.fit.gpu_memory._config_of", lambda model, revision: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(disks.shutil, "disk_usage", lambda folder: Usage(10**12, 0, 10**9))
    job = a_job(teacher={"engine": "vllm", "model": "org/teacher-1b"}, output={"uri": "s3://bucket/store"})
    (line,) = disk_lines(job, 0)
    assert "2.0 GB (1b in its name" in line
    assert "HF_HOME" in line
    blobs = tmp_path / "models--org--teacher-1b" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "weights").open("wb") as file:
        file.truncate(15 * 10**8)
    assert disk_lines(job, 0) == [], "half a GB is missing and one is free"
    elsewhere = a_job(
        teacher={"engine": "vllm", "model": "org/teacher-9b"},
        output={"uri": "s3://bucket/store"},
        workers={"address": "10.0.0.1:6379"},
    )
    assert disk_lines(elsewhere, 0) == []


def test_the_most_that_answers_can_take() -> None:
    read = {"kind": "prompt", "limit": 10, "slice": "1/4"}
    job = a_job(input=read, labels={"mode": "generate", "top_k": 64}, sampling={"max_tokens": 100, "n": 2})
    assert store_bytes_at_most(job) == pytest.approx(3 * 2 * 100 * 131)
    assert store_bytes_at_most(a_job(input={"kind": "text"})) is None
    texts = a_job(input=read, labels={"mode": "generate", "rows": False}, sampling={"max_tokens": 100})
    assert store_bytes_at_most(texts) == pytest.approx(3 * 100 * BYTES_PER_TEXT_TOKEN)
