"""Writes `status.json` from a thread of its own, so that slow storage never holds up the driver.

Only the driver that has the lease writes. A driver that was paused for longer than its lease may go on in the
middle of a write, so each write replaces exactly the status that was read before the lease was: where another
driver has written since, nothing is changed, and this one ends its writing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace

from labeler.job.driver_lease import DriverLease
from labeler.job.money.runs import RunWriter
from logitstore.errors import ObjectNotFoundError
from logitstore.job_objects import STATUS_NAME, JobStatus
from logitstore.objects.opening import Objects

WRITE_EVERY_SEC = 2.0


class StatusWriter:
    """Keeps the store's status at most about `WRITE_EVERY_SEC` behind the last `put`."""

    def __init__(self, objects: Objects, lease: DriverLease, run: RunWriter | None = None) -> None:
        """`run` keeps the record of the run beside it, from the same thread."""
        self._objects = objects
        self._lease = lease
        self._run = run
        self._latest: JobStatus | None = None
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_forever, name="status", daemon=True)
        self._thread.start()

    def put(self, status: JobStatus) -> None:
        self._latest = status
        self._changed.set()

    def stop(self) -> None:
        """Write no more, and no last status either."""
        self._closing.set()
        self._changed.set()
        self._thread.join()

    def close(self, last: JobStatus) -> None:
        """Stop, and write the run and, unless another driver has the store, the last status.

        Raises OSError if storage fails.
        """
        self.stop()
        if self._run is not None:
            self._run.put(last, time.monotonic(), is_last=True)
        write_status(self._objects, self._lease, last)

    def _write_forever(self) -> None:
        while self._changed.wait() and not self._closing.is_set():
            self._changed.clear()
            status = self._latest
            if status is not None:
                # The next one tells more; commits report storage that stays away.
                with contextlib.suppress(OSError):
                    write_status(self._objects, self._lease, status)
                    if self._run is not None:
                        self._run.put(status, time.monotonic())
            self._closing.wait(WRITE_EVERY_SEC)


def write_status(objects: Objects, lease: DriverLease, status: JobStatus) -> bool:
    """Replace the store's status; False, with nothing changed, where another driver has the lease.

    Raises OSError if storage fails.
    """
    content = replace(status, driver=lease.owner).as_json().encode()
    while True:
        try:
            found, etag = objects.get_with_etag(STATUS_NAME)
        except ObjectNotFoundError:
            found, etag = b"", ""
        if found == content:
            return True  # Also after a write whose reply was lost.
        # In this order: what is written after this look at the lease changes what was found before it.
        if not lease.is_held():
            return False
        if etag:
            objects.put_if_match(STATUS_NAME, content, etag)
        else:
            objects.put_if_absent(STATUS_NAME, content)
