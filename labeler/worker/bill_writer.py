"""Keeps in the store what a server has billed this worker, so that a killed worker's money is known.

A thread writes what changed since, several times a second on a local store; before a unit is committed it
is written for certain, so that the money of all stored labels is counted.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict

from labeler.config.loading import CostConfig
from labeler.records import Billed
from logitstore.job_objects import BILLS_PREFIX, Bill
from logitstore.objects.opening import Objects

LOCAL_EVERY_SEC = 0.25
REMOTE_EVERY_SEC = 2.0


class BillWriter:
    """One object below `BILLS_PREFIX`."""

    def __init__(
        self, objects: Objects, worker: str, prices: CostConfig, billed: Callable[[], Billed]
    ) -> None:
        """Write for the first time, and from then on whenever `billed` gives something new."""
        self._objects = objects
        self._worker = worker
        self._prices = prices
        self._billed = billed
        self._name = f"{BILLS_PREFIX}{worker}-{secrets.token_hex(8)}.json"
        self._written: Billed | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_forever, name="bill", daemon=True)
        self._thread.start()

    def write(self) -> None:
        """Write what was billed by now. Raises OSError if storage fails."""
        with self._lock:
            billed = self._billed()
            if billed == self._written:
                return
            bill = Bill(
                worker=self._worker,
                **asdict(billed),
                input_price=self._prices.price_per_million_input_tokens,
                output_price=self._prices.price_per_million_output_tokens,
                currency=self._prices.currency,
            )
            self._objects.put(self._name, json.dumps(asdict(bill)).encode())
            self._written = billed

    def close(self) -> None:
        """Stop, after a last word."""
        self._closing.set()
        self._thread.join()

    def _write_forever(self) -> None:
        every_sec = LOCAL_EVERY_SEC if self._objects.is_local else REMOTE_EVERY_SEC
        while True:
            is_last = self._closing.is_set()
            # What fails here is written by the next, and before a commit for certain.
            with contextlib.suppress(OSError):
                self.write()
            if is_last:
                return
            self._closing.wait(every_sec)
