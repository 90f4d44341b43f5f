"""Whose jobs a command means when none is named, and what is shown of jobs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import JobRefusedError
from cluster.jobs import commands
from cluster.jobs.client import ClusterJob
from cluster.jobs.dashboard import is_cluster_address, write_jobs
from cluster.jobs.people import newest_of, only_one_at_work, owner_here


def test_a_store_is_not_taken_for_a_cluster(tmp_path: Path) -> None:
    assert is_cluster_address("http://head:8265")
    assert is_cluster_address("head:8265")
    assert is_cluster_address("[fd00::1]:8265")
    for store in ("runs/demo", "s3://bucket/run", str(tmp_path)):
        assert not is_cluster_address(store)


def cluster_jobs(owner: str = "ada@lab", **states: str) -> list[ClusterJob]:
    return [
        ClusterJob(name, state, "as Ray said", "s3://b/store", "", 1.0, None, None, owner, {})
        for name, state in states.items()
    ]


def test_a_job_that_failed_for_what_the_cluster_lacks_ends_with_the_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (job,) = cluster_jobs(label="FAILED")
    said = "Job entrypoint command failed with exit code 1\n/usr/bin/python: No module named labeler"
    assert commands._ended(replace(job, message=said)) == 1
    assert "has no labeler: submit with --ship-code" in capsys.readouterr().err
    assert commands._ended(job) == 1
    assert capsys.readouterr().err == "label failed: as Ray said\n"


def test_without_an_id_only_a_lone_job_of_ones_own_is_stopped() -> None:
    alone = cluster_jobs(newest="SUCCEEDED", older="RUNNING", oldest="STOPPED")
    others = cluster_jobs("bob@lab", theirs="RUNNING")
    assert only_one_at_work([*others, *alone], "ada@lab") == alone[1]
    assert only_one_at_work([*others, *cluster_jobs(newest="SUCCEEDED")], "ada@lab") is None
    with pytest.raises(JobRefusedError, match="name the one to stop: first, second"):
        only_one_at_work(cluster_jobs(first="PENDING", second="RUNNING"), "ada@lab")


def test_without_an_id_the_newest_job_of_ones_own_is_meant_and_never_anothers() -> None:
    mine, theirs = cluster_jobs(a="STOPPED", b="SUCCEEDED"), cluster_jobs("bob@lab", c="RUNNING")
    unknown = cluster_jobs("", d="RUNNING")
    assert newest_of([*theirs, *mine], "ada@lab", address="http://h:8265") == mine[0]
    with pytest.raises(JobRefusedError, match=r"no labeling job of ada@lab; .* c \(bob@lab\), d \(unknown\)"):
        newest_of([*theirs, *unknown], "ada@lab", address="http://h:8265")
    with pytest.raises(JobRefusedError, match="submit one"):
        newest_of([], "ada@lab", address="http://h:8265")


def test_the_owner_is_given_or_found_and_is_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert owner_here("ada", {"PENUMBRA_OWNER": "bob"}) == "ada"
    assert owner_here(None, {"PENUMBRA_OWNER": "bob"}) == "bob"
    assert re.fullmatch(r"\S+@\S+", owner_here(None, {}))
    for wrong in ("a b", "a\nb", "\x1b[2J"):
        with pytest.raises(JobRefusedError, match="one word"):
            owner_here(wrong, {})


def test_a_job_whose_cluster_is_gone_is_not_called_running(tmp_path: Path) -> None:
    jobs = cluster_jobs(a="RUNNING", b="SUCCEEDED")
    write_jobs(tmp_path / "jobs.json", jobs, problem="no Ray cluster answers")
    rows = json.loads((tmp_path / "jobs.json").read_text())
    assert [(row["state"], row["message"]) for row in rows] == [
        ("UNKNOWN", "no Ray cluster answers"),
        ("SUCCEEDED", "as Ray said"),
    ]
