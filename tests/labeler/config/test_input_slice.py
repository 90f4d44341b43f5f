"""Parts of an input: together all of it, and none twice."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from labeler.config.loading import JobConfig
from labeler.driver.plan_pass import read_input
from labeler.planning.preflight import prepare


def a_job(folder: Path, **read: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "teacher": {"engine": "fake"},
            "input": {"uri": str(folder / "in.jsonl"), "kind": "text"} | read,
            "output": {"uri": str(folder / "store")},
        }
    )


def numbers(job: JobConfig) -> list[int]:
    return [int(raw.record["text"]) for raw in read_input(job) if raw.record is not None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(11)))
    return tmp_path


@pytest.mark.parametrize("limit", [None, 1, 7])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_parts_are_the_whole_input(folder: Path, limit: int | None, count: int) -> None:
    parts = [numbers(a_job(folder, limit=limit, slice=f"{number}/{count}")) for number in range(count)]
    whole = list(range(11 if limit is None else limit))
    assert sorted(itertools.chain(*parts)) == whole == numbers(a_job(folder, limit=limit))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_another_part_is_read_again(folder: Path) -> None:
    """A plan says of which input it is; that of one part is not that of another."""
    plans = {prepare(a_job(folder, slice=part)).fingerprint for part in ("", "0/2", "1/2")}
    assert len(plans) == 3


@pytest.mark.parametrize("part", ["2/2", "1", "a/2", "-1/2", "0/0", "1/2/3"])
def test_a_part_that_is_none_is_refused(folder: Path, part: str) -> None:
    with pytest.raises(ValidationError, match="slice"):
        a_job(folder, slice=part)
