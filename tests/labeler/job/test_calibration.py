"""Which records a trial labels; that it labels them is tried in `driver/test_run.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeler.config.loading import JobConfig, load_job
from labeler.driver.plan_pass import read_input
from labeler.driver.run import RunOptions
from labeler.job import calibration
from labeler.job.calibration import calibrate_job, trial_of
from labeler.job.money.cost import cost_of
from labeler.job.status import Tally, snapshot
from labeler.planning.plan import PlanTotals
from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus
from logitstore.job_objects import JobStatus
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


def test_a_trial_too_short_to_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A status has milliseconds; an engine that took none of them has no rate."""
    job, totals = load_job(None, overrides_for(tmp_path), {}), PlanTotals(3, 3, 1, 60, 30)

    def run(trial: JobConfig, options: RunOptions) -> tuple[ExitStatus, JobStatus]:
        cost = cost_of(trial, replica_sec=1.0, num_tokens=60, num_bytes=100)
        return ExitStatus.DONE, snapshot(
            Tally(engine_sec=0.0004, tokens=60, rows=30, bytes=100), state="finished", cost=cost
        )

    monkeypatch.setattr(calibration, "run", run)
    monkeypatch.setattr(calibration.Plan, "totals", lambda plan: totals)
    with pytest.raises(ConfigError, match=r"less than a millisecond over 3 records.* give --calibrate more"):
        calibrate_job(job, totals, 3)
