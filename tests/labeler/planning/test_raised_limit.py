"""A job that takes more of its input than when its store was begun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labeler.config.loading import load_job, resolved
from labeler.records import Lease
from logitstore.common.penumbra import main
from logitstore.job_objects import JOB_NAME
from tests.labeler.jobs import label_and_commit, labeled_ids, overrides_for, planned, write_records


def test_only_the_further_records_are_labeled_and_verify_knows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest has the first limit, by which its commits know it; `job.json` that of the last run."""
    write_records(tmp_path / "in.jsonl", 30)
    done: set[str] = set()
    for limit, num_new in ((10, 2), (25, 2)):
        job = load_job(None, overrides_for(tmp_path, f"input.limit={limit}"), {})
        worker, units, setup = planned(job)
        setup.prepared.objects.put(JOB_NAME, json.dumps(resolved(job)).encode())
        new = [unit for unit in units if unit.unit_id not in done]
        assert len(new) == num_new
        for number, unit in enumerate(new):
            label_and_commit(worker, Lease(number, unit, "worker-0.0"))
        done |= {unit.unit_id for unit in new}
        worker.close()
        assert sorted(labeled_ids(tmp_path / "store"), key=int) == [str(i) for i in range(limit)]
        assert (
            main(["store", "verify", str(tmp_path / "store"), "--against", str(tmp_path / "in.jsonl")]) == 0
        )
    assert "25 input records" in capsys.readouterr().out
