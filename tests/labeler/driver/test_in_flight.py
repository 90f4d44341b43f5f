"""Units that an actor holds, so that its engine never waits for one."""

from __future__ import annotations

import pytest

from labeler.config.loading import JobConfig, load_job
from labeler.config.run_settings import MOST_LEASES
from labeler.driver.in_flight import units_in_flight
from labeler.planning.plan import PlanTotals

SCORE = ["input.kind=prompt_response"]
GENERATE = ["input.kind=prompt", "labels.mode=generate"]
API = ["teacher.engine=openai", "teacher.api.base_url='http://h/v1'", "labels.temperatures=[1.0]"]
ON_GPU = ["workers.gpus=1"]


def job_of(*overrides: str) -> JobConfig:
    return load_job(None, ["teacher.model=m", "input.uri=in.jsonl", "output.uri=out", *overrides], {})


def plan_of(records_per_unit: int, tokens_per_record: int, num_units: int = 100) -> PlanTotals:
    num_records = records_per_unit * num_units
    num_tokens = num_records * tokens_per_record
    return PlanTotals(num_records, num_records, num_units, num_tokens, num_tokens)


@pytest.mark.parametrize(
    ("overrides", "plan", "leases"),
    [
        # A CPU engine works on 40 sequences, or 2,048 tokens to score, at a time: one unit fills it.
        (SCORE, plan_of(64, 512), 2),
        (GENERATE, plan_of(64, 100), 2),
        # Five units of 8 records make 40 sequences.
        (GENERATE, plan_of(8, 100), 6),
        # A GPU decodes 320 at a time; units of 64 records are 5 of them, one flows in, one is written.
        ([*GENERATE, *ON_GPU], plan_of(64, 100), 7),
        ([*GENERATE, *ON_GPU, "sampling.n=4"], plan_of(64, 100), 4),
        ([*GENERATE, *ON_GPU, "teacher.engine_args.max_num_seqs=512"], plan_of(64, 100), 12),
        # Scoring it has enough with 8,192 tokens.
        ([*SCORE, *ON_GPU], plan_of(64, 512), 3),
        ([*SCORE, *ON_GPU], plan_of(8, 512), 4),
        ([*SCORE, *ON_GPU, "teacher.engine_args.max_num_batched_tokens=16384"], plan_of(64, 512), 4),
        # Short records: 320 sequences are fewer tokens than that.
        ([*SCORE, *ON_GPU], plan_of(64, 20), 7),
        ([*GENERATE, *ON_GPU, "workers.leases=2"], plan_of(1, 10), 2),
        # A server is asked so many requests at a time as the job says, whatever a CPU engine would take.
        ([*API, *GENERATE, "teacher.api.concurrency=512"], plan_of(64, 100), 9),
        ([*API, *GENERATE, "teacher.api.concurrency=512", "sampling.n=4"], plan_of(64, 100), 3),
        ([*API, *SCORE, "teacher.api.concurrency=512"], plan_of(64, 512), 9),
        ([*API, *GENERATE, "teacher.api.concurrency=16"], plan_of(64, 100), 2),
        (["teacher.engine=fake", *SCORE], plan_of(2, 10), 2),
        (SCORE, plan_of(0, 0, 0), 2),
    ],
)
def test_as_many_as_fill_the_engine(overrides: list[str], plan: PlanTotals, leases: int) -> None:
    found = units_in_flight(job_of(*overrides), plan)
    assert (found.leases, found.warning) == (leases, "")


def test_units_too_small_for_the_engine_are_told() -> None:
    found = units_in_flight(job_of(*GENERATE, *ON_GPU), plan_of(2, 100))
    assert found.leases == MOST_LEASES
    assert "units of 2 records are small: 160 of them fill an engine" in found.warning
    assert "raise output.unit_size" in found.warning


def test_units_too_small_for_the_requests_of_a_server_are_told() -> None:
    found = units_in_flight(job_of(*API, *GENERATE, "teacher.api.concurrency=512"), plan_of(2, 100))
    assert found.leases == MOST_LEASES
    assert "256 of them fill teacher.api.concurrency = 512" in found.warning
