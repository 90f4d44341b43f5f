"""The money of a job while it runs: devices of all runs, bills of all workers, what else its limit counts.

Bills are read by a thread, so that slow storage holds up nobody: what is asked for here is at once there, and
about `READ_EVERY_SEC` old.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

from labeler.config.loading import JobConfig
from labeler.job.money.cost import cost_of, over_budget, read_bills
from labeler.job.money.runs import money_by_currency
from labeler.job.status import Tally
from labeler.patience import persistently
from logitstore.errors import CorruptManifestError
from logitstore.job_objects import Bill, Cost
from logitstore.objects.opening import Objects

READ_EVERY_SEC = 2.0


class Spending:
    """What one run of a job costs, and what was spent with it."""

    def __init__(
        self,
        job: JobConfig,
        objects: Objects,
        tally: Tally,
        note: Callable[[str], None],
        also_counted: Sequence[str] = (),
    ) -> None:
        """`also_counted` are stores whose money counts for `limits.max_cost` too."""
        self._job = job
        self._objects = objects
        self._tally = tally
        self._note = note
        self._also_counted = also_counted
        self._has_bills = job.teacher.engine == "openai"
        self._bills: list[Bill] = []
        self._damaged: CorruptManifestError | None = None
        self._earlier_money = 0.0
        self._closing = threading.Event()
        self.replica_sec = 0.0
        """Seconds that this run's replicas were held, summed over them."""

    def begin(self) -> None:
        """Read what earlier runs were billed.

        Raises CorruptManifestError for a bill or a run that is none, OSError for storage that fails.
        """
        if self._has_bills:
            self._bills = persistently(lambda: read_bills(self._objects), self._job.output.retry_sec)
        if self._job.limits.max_cost is None:
            return
        currency = self._job.cost.currency
        spent = money_by_currency(self._objects, bills=())
        self._earlier_money = spent.get(currency, 0.0)
        for uri in self._also_counted:
            others = Objects(uri)
            for name, money in money_by_currency(others, bills=read_bills(others)).items():
                spent[name] = spent.get(name, 0.0) + money
                self._earlier_money += money if name == currency else 0.0
        for bill in self._bills:
            if bill.currency != currency:
                spent[bill.currency] = spent.get(bill.currency, 0.0) + bill.money
        for name, money in sorted(spent.items()):
            if money and name != currency:
                self._note(
                    f"{money:,.4f} {name} of earlier runs do not count for limits.max_cost, which is in "
                    f"{currency} (cost.currency)"
                )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Bills are read again and again within, and once more at the end."""
        if not self._has_bills:
            yield
            return
        thread = threading.Thread(target=self._read_forever, name="bills", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._closing.set()
            thread.join()
            self._read()

    def cost(self) -> Cost:
        """The cost of this run, with the bills of all runs as last read."""
        return cost_of(
            self._job,
            replica_sec=self.replica_sec,
            num_tokens=self._tally.tokens_seen,
            num_bytes=self._tally.bytes,
            bills=self._bills,
        )

    def reached(self) -> str:
        """What is said where `limits.max_cost` is reached; "" where it is not.

        Raises CorruptManifestError where a bill is damaged: what is spent is not known any more.
        """
        limit = self._job.limits.max_cost
        if limit is None:
            return ""
        if self._damaged is not None:
            raise self._damaged
        cost = self.cost()
        money = self._earlier_money + cost.compute + cost.billed
        return over_budget(self._job, money) if money >= limit else ""

    def _read_forever(self) -> None:
        while not self._closing.wait(READ_EVERY_SEC):
            self._read()

    def _read(self) -> None:
        """Storage that fails leaves the last bills: no worker commits before its bill is written."""
        try:
            with contextlib.suppress(OSError):
                self._bills = read_bills(self._objects)
                self._damaged = None
        except CorruptManifestError as error:
            if self._damaged is None:
                self._note(f"what is billed is not known any more: {error}")
            self._damaged = error
