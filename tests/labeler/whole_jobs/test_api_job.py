"""A thousand records through a server that fails in every way, by a driver that is killed twice.

The server is a stand-in that speaks vLLM's form of the API; the teacher passes the same tests against vLLM's own.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks.jobs.running_job import started, units_done, verify, wait_for
from labeler.job.money.runs import store_cost
from labeler.job.status import read_status
from logitstore.common.exit_status import ExitStatus
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from tests.labeler.jobs import overrides_for, run_job, write_records
from tests.labeler.lacking_interpreter import interpreter_with
from tests.labeler.teacher.openai.server import KEY, SERVED, Fault, FaultyProxy, faulty_proxy
from tests.labeler.teacher.openai.stand_in import stand_in_server, write_model

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
RECORDS = 1000
CONCURRENCY = 8
FAULTS: tuple[Fault, ...] = ("busy", "error", "cut", "slow", "nonsense", "other", "filtered")
BEFORE_SEC, AFTER_SEC = 0.7, 4.0
"""Answers so long before and after a driver's death may be missing: its worker writes its bill several times a
second, and lives on for a moment."""


def job_of(folder: Path, url: str) -> list[str]:
    return overrides_for(
        folder,
        "teacher.engine=openai",
        f"teacher.model='{folder}/model'",
        f"teacher.api.base_url='{url}'",
        f"teacher.api.model={SERVED}",
        "teacher.api.key_variable=PENUMBRA_TEST_KEY",
        "teacher.api.longest_pause_sec=0.05",
        f"teacher.api.concurrency={CONCURRENCY}",
        "input.kind=prompt",
        "input.chat_template=false",
        "labels.mode=generate",
        "labels.temperatures=[1.0]",
        "sampling.temperature=0",
        "sampling.max_tokens=2",
        "filters.empty=keep",
        "output.unit_size=20",
        "workers.replicas=1",
        "workers.driver_lease_sec=4",
        "limits.max_reject_share=0.5",
        "cost.price_per_million_input_tokens=2",
        "cost.price_per_million_output_tokens=10",
    )


def money(answers: list[tuple[float, int, int]]) -> float:
    return sum(2 * given + 10 * written for _, given, written in answers) / 1e6


def test_a_thousand_records_exactly_once_and_the_money_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is installed but what the extra for it brings: neither torch nor vLLM."""
    monkeypatch.setenv("PENUMBRA_TEST_KEY", KEY)
    monkeypatch.setattr(sys, "executable", str(interpreter_with(tmp_path / "environment", "api")))
    write_records(tmp_path / "in.jsonl", RECORDS)
    store, killed_at = tmp_path / "store", list[float]()
    with stand_in_server(write_model(tmp_path / "model")) as upstream, faulty_proxy(upstream) as (proxy, url):
        proxy.slow_sec = 0.1
        some: list[Fault | None] = [fault for one in FAULTS for fault in (one, None, None)]
        proxy.every = itertools.cycle([*some, *[None] * 6])
        for enough in (2, 6):
            with started(job_of(tmp_path, url)) as job:
                wait_for(lambda enough=enough: units_done(store) >= enough, job)
                job.kill()
                killed_at.append(time.time())
        num_bills = len(Objects(str(store)).list("logs/bills/"))
        spent = run_job([*job_of(tmp_path, url), "limits.max_cost=0.001"])
        assert spent.returncode == ExitStatus.STOPPED, spent.stderr
        assert "limits.max_cost = 0.001 USD is reached" in spent.stderr + spent.stdout
        assert len(Objects(str(store)).list("logs/bills/")) == num_bills == 2, "no server is asked"
        finished = run_job(job_of(tmp_path, url), timeout_sec=450)
        assert finished.returncode == 0, finished.stderr
        assert set(FAULTS) <= set(proxy.counts)
        check_labels(tmp_path)
        check_money(store, proxy, killed_at)


def check_labels(folder: Path) -> None:
    opened = LogitStore.open(folder / "store")
    labeled = [sequence.record_id for sequence in opened.iter_sequences()]
    refused = [str(reject.record_id) for reject in opened.rejects()]
    assert {reject.kind for reject in opened.rejects()} == {"content_filter"}
    assert sorted([*labeled, *refused], key=int) == [str(number) for number in range(RECORDS)]
    checked = verify(folder / "store", folder / "in.jsonl")
    assert checked.returncode == 0, checked.stdout


def check_money(store: Path, proxy: FaultyProxy, killed_at: list[float]) -> None:
    """All that arrived is counted, but for what a killed worker had no time to write down; no cent twice."""
    billed = store_cost(str(store)).as_record()["billed"]
    known = [
        one for one in proxy.billed if not any(-BEFORE_SEC < one[0] - at < AFTER_SEC for at in killed_at)
    ]
    assert money(known) <= billed["money"]["USD"] * (1 + 1e-9)
    assert billed["money"]["USD"] <= money(proxy.billed) * (1 + 1e-9)
    assert len(known) <= billed["num_answers"] <= len(proxy.billed)
    assert money(known) > 0.7 * money(proxy.billed)
    stored = [len(one.token_ids_T) for one in LogitStore.open(store).iter_sequences()]
    assert sum(stored) <= billed["input_tokens"] + billed["output_tokens"]
    assert 0 < billed["num_lost"] <= proxy.counts.total() - billed["num_answers"]
    cost = read_status(str(store)).cost
    assert cost is not None
    assert cost.billed == pytest.approx(billed["money"]["USD"])
    assert "were lost and are not counted" in str(cost)
    assert len(Objects(str(store)).list("logs/bills/")) == 3
    assert KEY not in json.dumps(billed)
