"""What each run of a job cost, kept in its store, and the sum over all of them and by person.

A run writes one object of its own, again every minute while it works, so that a driver that is killed leaves
the seconds of its run but for the last minute.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labeler.job.money.cost import read_bills
from labeler.job.person import person_here
from logitstore.errors import CorruptManifestError
from logitstore.job_objects import RUNS_PREFIX, STATUS_NAME, Bill, Cost, JobStatus, RunRecord
from logitstore.job_parsing import parse_run, parse_status
from logitstore.objects.opening import Objects

WRITE_EVERY_SEC = 60.0


class RunWriter:
    """Keeps the record of one run up to date."""

    def __init__(self, objects: Objects, started: str) -> None:
        """`started` is the run's beginning, UTC in ISO 8601."""
        self._objects = objects
        self._owner = person_here()
        digits = "".join(letter for letter in started if letter.isdigit())[:14]
        self._name = f"{RUNS_PREFIX}{digits}-{secrets.token_hex(4)}.json"
        self._next_sec = 0.0

    def put(self, status: JobStatus, now_sec: float, *, is_last: bool = False) -> None:
        """Write the run as `status` says it, at most once a minute; nothing before a device was held."""
        cost = status.cost
        if cost is None or not cost.device_sec or (now_sec < self._next_sec and not is_last):
            return
        self._next_sec = now_sec + WRITE_EVERY_SEC
        record = RunRecord(
            owner=self._owner,
            state=status.state,
            started=status.started,
            updated=status.updated,
            device=cost.device,
            device_sec=round(cost.device_sec, 3),
            num_tokens=cost.num_tokens,
            compute=cost.compute,
            currency=cost.currency,
        )
        self._objects.put(self._name, json.dumps(asdict(record)).encode())


def money_by_currency(objects: Objects, bills: Sequence[Bill]) -> dict[str, float]:
    """Money for the devices of all runs of a store, and of the bills.

    Raises CorruptManifestError, OSError.
    """
    found: dict[str, float] = {}
    for run in _read_runs(objects):
        found[run.currency] = found.get(run.currency, 0.0) + run.compute
    for bill in bills:
        found[bill.currency] = found.get(bill.currency, 0.0) + bill.money
    return found


@dataclass(frozen=True, slots=True)
class StoreCost:
    """What all runs of a store have cost."""

    runs: tuple[RunRecord, ...]
    """By their beginning."""
    storage: Cost | None
    """The last status's, for the bytes and their price; None where there is none."""
    bills: tuple[Bill, ...] = ()
    """What servers billed, by worker."""

    @property
    def owners(self) -> list[str]:
        return sorted({run.owner for run in self.runs})

    def as_record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "total": _sum_of(self.runs),
            "owners": {owner: _sum_of(self._of(owner)) for owner in self.owners},
            "runs": [asdict(run) for run in self.runs],
            "num_bytes": self.storage.num_bytes if self.storage else 0,
            "storage_per_month": self.storage.storage_per_month if self.storage else 0.0,
            "billed": _billed(self.bills),
        }

    def in_words(self) -> list[str]:
        """The sum, persons where there are several, and each run; a line each."""
        lines = [f"{_words_of(self.runs)} in {len(self.runs)} runs"]
        if len(self.owners) > 1:
            lines += [f"  {owner}: {_words_of(self._of(owner))}" for owner in self.owners]
        lines += [f"  {run.started}  {run.state:<11}  {run.owner}: {_words_of([run])}" for run in self.runs]
        lines += _billed_in_words(self.bills)
        if self.storage is not None and self.storage.storage_per_month:
            price = f"{self.storage.storage_per_month:,.6f} {self.storage.currency}"
            lines.append(f"{self.storage.num_bytes / 1e6:,.2f} MB, {price} a month to keep")
        return lines

    def _of(self, owner: str) -> list[RunRecord]:
        return [run for run in self.runs if run.owner == owner]


def store_cost(uri: str, storage_options: Mapping[str, Any] | None = None) -> StoreCost:
    """Raises CorruptManifestError for a record that is none, ObjectStoreError for storage that fails."""
    objects = Objects(uri, storage_options)
    runs = _read_runs(objects)
    storage = None
    if objects.exists(STATUS_NAME):
        storage = parse_status(objects.get(STATUS_NAME)).cost
    if not runs and storage is not None and storage.device_sec:
        raise CorruptManifestError(
            f"{objects.uri} was labeled by a version that kept the cost of its last run alone: {storage}"
        )
    bills = read_bills(objects)
    return StoreCost(tuple(sorted(runs, key=lambda run: run.started)), storage, tuple(bills))


def _read_runs(objects: Objects) -> list[RunRecord]:
    names = objects.list(RUNS_PREFIX)
    contents = zip(names, objects.get_many(names), strict=True)
    return [parse_run(data, name) for name, data in contents if data is not None]


def _billed(bills: Sequence[Bill]) -> dict[str, Any]:
    money: dict[str, float] = {}
    for bill in bills:
        money[bill.currency] = money.get(bill.currency, 0.0) + bill.money
    return {
        "money": money,
        "input_tokens": sum(bill.input_tokens for bill in bills),
        "output_tokens": sum(bill.output_tokens for bill in bills),
        "num_answers": sum(bill.num_answers for bill in bills),
        "num_lost": sum(bill.num_lost for bill in bills),
        "num_on_the_way": sum(bill.num_on_the_way for bill in bills),
    }


def _billed_in_words(bills: Sequence[Bill]) -> list[str]:
    if not bills:
        return []
    total = _billed(bills)
    money = ", ".join(f"{amount:,.4f} {currency}" for currency, amount in sorted(total["money"].items()))
    lines = [
        f"servers billed {total['input_tokens']:,} tokens given and {total['output_tokens']:,} written in "
        f"{total['num_answers']:,} answers: {money}"
    ]
    if unknown := total["num_lost"] + total["num_on_the_way"]:
        lines.append(
            f"  not counted: {unknown:,} answers that were lost, or on the way when their worker last said "
            "something; the server may have billed them"
        )
    return lines


def _sum_of(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Seconds by device and money by currency: neither can be added to another kind."""
    seconds: dict[str, float] = {}
    money: dict[str, float] = {}
    for run in runs:
        seconds[run.device] = seconds.get(run.device, 0.0) + run.device_sec
        if run.compute:
            money[run.currency] = money.get(run.currency, 0.0) + run.compute
    return {"device_sec": seconds, "num_tokens": sum(run.num_tokens for run in runs), "compute": money}


def _words_of(runs: Sequence[RunRecord]) -> str:
    total = _sum_of(runs)
    parts = [f"{seconds:,.0f} {device} seconds" for device, seconds in sorted(total["device_sec"].items())]
    parts += [f"{money:,.4f} {currency}" for currency, money in sorted(total["compute"].items())]
    return ", ".join(parts) or "nothing"
