"""Device seconds and money of a job."""

import pytest

from labeler.config.loading import load_job
from labeler.job.cost import cost_of
from labeler.job.dry_run import bytes_per_row


def job_for(*overrides):
    base = ["teacher.engine=fake", "input.uri=in", "input.kind=text", "output.uri=out"]
    return load_job(None, [*base, *overrides], {})


def test_gpu_seconds_are_counted_and_priced():
    job = job_for("workers.gpus=2", "cost.per_gpu_hour=3.6", "cost.per_gb_month=0.02", "cost.currency=EUR")
    cost = cost_of(job, replica_sec=1000, num_tokens=4_000_000, num_bytes=5 * 10**9)
    assert (cost.device, cost.device_sec) == ("gpu", 2000)
    assert cost.device_sec_per_million_tokens == 500
    assert cost.compute == pytest.approx(2.0)
    assert cost.storage_per_month == pytest.approx(0.1)
    assert "2.0000 EUR" in str(cost)
    assert cost.as_record()["device_sec_per_million_tokens"] == 500


def test_gpus_of_all_machines_of_a_replica_are_counted():
    job = job_for("workers.gpus=8", "workers.machines=2", "teacher.pipeline_parallel_size=2")
    assert cost_of(job, replica_sec=10, num_tokens=1, num_bytes=0).device_sec == 160


def test_replicas_without_gpus_cost_cores():
    job = job_for("workers.cores=4", "cost.per_gpu_hour=99", "cost.per_core_hour=0.036")
    cost = cost_of(job, replica_sec=100, num_tokens=0, num_bytes=0)
    assert (cost.device, cost.device_sec) == ("core", 400)
    assert cost.compute == pytest.approx(0.004)
    assert cost.device_sec_per_million_tokens == 0


def test_expected_bytes_grow_with_k_and_meet_the_measured_sizes():
    sizes = [bytes_per_row(top_k) for top_k in (1, 16, 24, 32, 64, 100, 128, 256)]
    assert sizes == sorted(sizes)
    assert bytes_per_row(64) == pytest.approx(131)
    assert bytes_per_row(128) == pytest.approx(249)
