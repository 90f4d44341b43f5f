"""Money while a job runs: read beside the loop, counted over runs and stores, and never guessed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from labeler.config.loading import JobConfig, load_job
from labeler.driver.run import RunOptions, run
from labeler.job.money import spending
from labeler.job.money.spending import Spending
from labeler.job.status import Tally
from logitstore.common.exit_status import ExitStatus
from logitstore.errors import CorruptManifestError
from logitstore.job_objects import BILLS_PREFIX, RUNS_PREFIX, STATUS_NAME, Bill, RunRecord
from logitstore.job_parsing import parse_status
from logitstore.objects.opening import Objects
from tests.labeler.teacher.openai.chat_stand_in import write_student

PATIENCE_SEC = 20.0


class SlowStorage(Objects):
    """Lists nothing while it is held up, and fails when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.fails = False
        self.num_lists = 0

    def list(self, prefix: str = "") -> list[str]:
        self.num_lists += 1
        self.goes_on.wait()
        if self.fails:
            raise OSError("the storage is away")
        return super().list(prefix)


def priced_job(folder: Path, *more: str) -> JobConfig:
    settings = ["teacher.engine=openai", "teacher.model=m", "teacher.api.base_url='http://h/v1'"]
    settings += ["labels.temperatures=[1.0]", "input.uri=in", "input.kind=text", f"output.uri={folder}"]
    settings += ["cost.price_per_million_input_tokens=1", "limits.max_cost=5", "output.retry_sec=0"]
    return load_job(None, [*settings, *more], {})


def put_bill(objects: Objects, name: str, money: int, currency: str = "USD") -> None:
    bill = Bill(name, money * 10**6, 0, 1, 0, 0, 1.0, 0.0, currency)
    objects.put(f"{BILLS_PREFIX}{name}.json", json.dumps(asdict(bill)).encode())


def put_run(objects: Objects, money: float, currency: str = "USD") -> None:
    run = RunRecord("ada", "finished", "2026-01-01T00:00:00+00:00", "", "core", 1.0, 1, money, currency)
    objects.put(f"{RUNS_PREFIX}{currency}.json", json.dumps(asdict(run)).encode())


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SEC
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowStorage:
    monkeypatch.setattr(spending, "READ_EVERY_SEC", 0.01)
    return SlowStorage(tmp_path)


def test_slow_or_failing_storage_holds_up_nobody(storage: SlowStorage, tmp_path: Path) -> None:
    put_bill(storage, "w0", 1)
    said: list[str] = []
    spent = Spending(priced_job(tmp_path), storage, Tally(), said.append)
    spent.begin()
    with spent.watched():
        storage.goes_on.clear()
        num_lists = storage.num_lists
        wait_until(lambda: storage.num_lists > num_lists)
        put_bill(storage, "w1", 2)
        began = time.monotonic()
        assert spent.cost().billed == 1.0, "while the storage does not answer"
        assert spent.reached() == ""
        assert time.monotonic() - began < 1.0
        storage.goes_on.set()
        wait_until(lambda: spent.cost().billed == 3.0)
        storage.fails = True
        num_lists = storage.num_lists
        wait_until(lambda: storage.num_lists > num_lists + 1)
        assert spent.cost().billed == 3.0
        storage.fails = False
        put_bill(storage, "w2", 2)
        wait_until(lambda: spent.reached() != "")
        put_bill(storage, "w3", 4)
    assert spent.cost().billed == 9.0, "read once more at the end"
    assert "limits.max_cost = 5 USD is reached: 9.0000 USD are spent" in spent.reached()
    assert said == []


def test_a_damaged_bill_ends_a_job_with_a_budget_and_is_told_once(
    storage: SlowStorage, tmp_path: Path
) -> None:
    said: list[str] = []
    spent = Spending(priced_job(tmp_path), storage, Tally(), said.append)
    spent.begin()
    name = f"{BILLS_PREFIX}w.json"
    with spent.watched():
        storage.put(name, b'{"worker": "w", "input_price": NaN}')
        wait_until(lambda: bool(said))
        with pytest.raises(CorruptManifestError, match=r"w\.json"):
            spent.reached()
        assert spent.cost().billed == 0.0
    assert len(said) == 1
    storage.put(name, b"")
    with pytest.raises(CorruptManifestError, match=r"w\.json"):
        Spending(priced_job(tmp_path), storage, Tally(), said.append).begin()


def test_money_of_earlier_runs_and_of_other_stores_counts(storage: SlowStorage, tmp_path: Path) -> None:
    others = Objects(str(tmp_path / "others"))
    said: list[str] = []
    job = priced_job(tmp_path / "own", "cost.per_core_hour=3600")
    own = Objects(str(tmp_path / "own"))
    put_bill(own, "w0", 1)
    put_run(own, 0.5)
    put_run(own, 7.0, "EUR")
    alone = Spending(job, own, Tally(), said.append)
    alone.begin()
    assert alone.reached() == ""
    assert said == [
        "7.0000 EUR of earlier runs do not count for limits.max_cost, which is in USD (cost.currency)"
    ]
    put_bill(others, "w0", 2)
    put_run(others, 0.5)
    both = Spending(job, own, Tally(), said.append, [others.uri])
    both.begin()
    assert both.reached() == ""
    both.replica_sec = 1.0
    assert "5.0000 USD are spent" in both.reached()


def test_a_run_that_cannot_know_what_is_spent_ends_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_student(tmp_path / "student")
    (tmp_path / "in.jsonl").write_text('{"prompt": "why?"}\n')
    settings = [f"teacher.model='{model}'", f"input.uri={tmp_path / 'in.jsonl'}", "input.kind=prompt"]
    settings += ["teacher.api.endpoint=chat", "labels.rows=false", "labels.mode=generate"]
    job = priced_job(tmp_path / "store", *settings)
    objects = Objects(str(tmp_path / "store"))
    objects.put(f"{BILLS_PREFIX}w.json", b'{"worker": "w", "input_price": 1e999}')
    exit_status, status = run(job, RunOptions(quiet=True))
    assert (exit_status, status.state) == (ExitStatus.UNREACHABLE, "failed")
    assert "w.json of the store is not readable" in status.message
    assert "remove it, and what it says is not counted" in capsys.readouterr().err
    assert parse_status(objects.get(STATUS_NAME)).message == status.message
