"""Progress and cost of a job are read from its store here, with the storage options of the job itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.client import ClusterJob
from cluster.jobs.commands import progress_of
from cluster.jobs.submission import JOB_KEY
from logitstore.job_objects import Cost, JobStatus
from logitstore.objects.opening import Objects
from tests.conftest import Place

STATUS = JobStatus("finished", units_done=2, units_total=2, cost=Cost("gpu", 9.0, 5, 7, 1.0, 0.5, "EUR"))


def job_on(uri: str, options: dict[str, Any]) -> ClusterJob:
    return ClusterJob(
        submission_id="label-x",
        state="SUCCEEDED",
        message="",
        store=uri,
        started="",
        seconds=0.0,
        exit_code=0,
        resumes=None,
        owner="",
        metadata={JOB_KEY: json.dumps({"output": {"uri": uri, "storage_options": options}})},
    )


@pytest.mark.s3
@pytest.mark.slow
def test_the_jobs_own_storage_options_reach_its_store(s3_place: Place) -> None:
    Objects(s3_place.uri, s3_place.storage_options).put("status.json", STATUS.as_json().encode())
    found, problem = progress_of(job_on(s3_place.uri, dict(s3_place.storage_options or {})))
    assert problem == ""
    assert found is not None
    assert (found.state, found.cost) == ("finished", STATUS.cost)


def test_a_store_that_cannot_be_read_is_a_reason(tmp_path: Path) -> None:
    found, problem = progress_of(job_on(str(tmp_path / "none"), {}))
    assert found is None
    assert "no store lies at" in problem
    (tmp_path / "status.json").write_text("[]")
    found, problem = progress_of(job_on(str(tmp_path), {}))
    assert found is None
    assert "status.json of the store is not readable" in problem
