"""Which records a trial labels; that it labels them is tried in `driver/test_run.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeler.config.loading import load_job
from labeler.driver.plan_pass import read_input
from labeler.job.calibration import trial_of
from tests.labeler.jobs import overrides_for, write_records


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ([], ["0", "1", "2"]),
        (["input.slice='2/4'"], ["2", "6", "10"]),
        (["input.slice='2/4'", "input.limit=7"], ["2", "6"]),
        (["input.limit=1"], ["0"]),
    ],
)
def test_a_trial_takes_the_jobs_own_first_records(
    tmp_path: Path, settings: list[str], ids: list[str]
) -> None:
    write_records(tmp_path / "in.jsonl", 30)
    job = load_job(None, overrides_for(tmp_path, *settings), {})
    trial = trial_of(job, f"{tmp_path}/trial", 3)
    assert [(raw.record or {})["uid"] for raw in read_input(trial)] == ids
    assert (trial.workers.replicas, trial.output.uri) == (1, f"{tmp_path}/trial")
