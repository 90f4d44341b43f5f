"""Writes `status.json` from a thread of its own, so that slow storage never holds up the driver."""

from __future__ import annotations

import contextlib
import threading
import time

from labeler.job.runs import RunWriter
from logitstore.job_objects import STATUS_NAME, JobStatus
from logitstore.objects.opening import Objects

WRITE_EVERY_SEC = 2.0


class StatusWriter:
    """Keeps the store's status at most about `WRITE_EVERY_SEC` behind the last `put`."""

    def __init__(self, objects: Objects, run: RunWriter | None = None) -> None:
        """`run` keeps the record of the run beside it, from the same thread."""
        self._objects = objects
        self._run = run
        self._latest: JobStatus | None = None
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_forever, name="status", daemon=True)
        self._thread.start()

    def put(self, status: JobStatus) -> None:
        self._latest = status
        self._changed.set()

    def close(self, last: JobStatus, *, is_driver: bool = True) -> None:
        """Stop, and write the run and the last status, which another driver has by now unless `is_driver`.

        Raises OSError if storage fails.
        """
        self._closing.set()
        self._changed.set()
        self._thread.join()
        if self._run is not None:
            self._run.put(last, time.monotonic(), is_last=True)
        if is_driver:
            self._objects.put(STATUS_NAME, last.as_json().encode())

    def _write_forever(self) -> None:
        while self._changed.wait() and not self._closing.is_set():
            self._changed.clear()
            status = self._latest
            if status is not None:
                # The next one tells more; commits report storage that stays away.
                with contextlib.suppress(OSError):
                    self._objects.put(STATUS_NAME, status.as_json().encode())
                    if self._run is not None:
                        self._run.put(status, time.monotonic())
            self._closing.wait(WRITE_EVERY_SEC)
