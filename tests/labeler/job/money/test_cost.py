"""Device seconds and money of a job."""

import json
from dataclasses import asdict

import pytest

from labeler.config.loading import load_job
from labeler.job.money.cost import cost_of, read_bills
from labeler.job.money.runs import store_cost
from labeler.planning.fit.disks import bytes_per_row
from labeler.records import Billed
from labeler.worker.bill_writer import BillWriter
from logitstore.common.config_file import ConfigError
from logitstore.errors import CorruptManifestError
from logitstore.job_objects import BILLS_PREFIX, Bill
from logitstore.objects.opening import Objects


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


API = (
    "teacher.engine=openai",
    "teacher.model=m",
    "teacher.api.base_url='http://h/v1'",
    "labels.temperatures=[1.0]",
)


def bill(worker: str, currency: str = "EUR", **counts: int) -> Bill:
    fields = {"input_tokens": 0, "output_tokens": 0, "num_answers": 0, "num_lost": 0, "num_on_the_way": 0}
    return Bill(worker, **(fields | counts), input_price=2.0, output_price=10.0, currency=currency)


def test_what_servers_billed_is_summed_over_workers_and_said(tmp_path):
    objects = Objects(str(tmp_path))
    bills = [
        bill("w0", input_tokens=1_000_000, output_tokens=50_000, num_answers=9, num_lost=2),
        bill("w1", input_tokens=500_000, num_answers=4, num_on_the_way=3),
        bill("w2", "USD", input_tokens=7, num_answers=1),
    ]
    for one in bills:
        objects.put(f"{BILLS_PREFIX}{one.worker}.json", json.dumps(asdict(one)).encode())
    assert read_bills(objects) == bills
    job = job_for(*API, "cost.price_per_million_input_tokens=3", "cost.currency=EUR")
    cost = cost_of(job, replica_sec=1, num_tokens=1, num_bytes=0, bills=bills)
    assert cost.billed == pytest.approx(2 + 0.5 + 1), "each by its own price, and no other currency"
    assert (cost.billed_input_tokens, cost.billed_output_tokens) == (1_500_007, 50_000)
    assert "2 answers were lost and are not counted; 3 were on the way" in str(cost)
    found = store_cost(str(tmp_path))
    assert found.as_record()["billed"]["money"] == {"EUR": 3.5, "USD": pytest.approx(14e-6)}
    assert "not counted: 5 answers" in "\n".join(found.in_words())


@pytest.mark.parametrize(
    "wrong",
    [
        '"input_price": NaN',
        '"input_price": 1e999',
        '"input_price": -1.0',
        '"input_tokens": -1',
        '"currency": "EUR", "currency": "USD"',
        '"worker": 3',
    ],
)
def test_a_bill_that_is_none_is_not_money(tmp_path, wrong):
    objects = Objects(str(tmp_path))
    text = json.dumps(asdict(bill("w")))
    name = wrong.partition(":")[0]
    kept = {key: value for key, value in json.loads(text).items() if f'"{key}"' != name}
    objects.put(f"{BILLS_PREFIX}x.json", f"{json.dumps(kept)[:-1]}, {wrong}}}".encode())
    with pytest.raises(CorruptManifestError, match=r"x\.json of the store is not readable|not valid JSON"):
        read_bills(objects)


def test_a_bill_is_written_when_it_changes_and_at_the_end(tmp_path):
    job = job_for(*API, "cost.price_per_million_input_tokens=2", "cost.price_per_million_output_tokens=10")
    objects, billed = Objects(str(tmp_path)), [Billed(5, 1, 1, 0, 2)]
    writer = BillWriter(objects, "w", job.cost, lambda: billed[0])
    writer.write()
    assert [(one.input_tokens, one.num_on_the_way) for one in read_bills(objects)] == [(5, 2)]
    billed[0] += Billed(7, 3, 2, 1, -2)
    writer.close()
    (last,) = read_bills(objects)
    assert (last.num_answers, last.num_lost, last.num_on_the_way) == (3, 1, 0)
    assert last.money == pytest.approx((12 * 2 + 4 * 10) / 1e6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["limits.max_cost=1"], "no price is given"),
        (["cost.price_per_million_input_tokens=1"], "they are for"),
        ([*API, "limits.max_cost=1", "cost.per_gb_month=1"], "no price is given"),
        ([*API, "cost.price_per_million_input_tokens=inf"], "finite"),
        (["limits.max_cost=nan", "cost.per_core_hour=1"], "finite"),
    ],
)
def test_money_that_cannot_be_counted_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        job_for(*settings)
    assert job_for("limits.max_cost=1", "cost.per_core_hour=1").limits.max_cost == 1


def test_expected_bytes_grow_with_k_and_meet_the_measured_sizes():
    sizes = [bytes_per_row(top_k) for top_k in (1, 16, 24, 32, 64, 100, 128, 256)]
    assert sizes == sorted(sizes)
    assert bytes_per_row(64) == pytest.approx(131)
    assert bytes_per_row(128) == pytest.approx(249)
