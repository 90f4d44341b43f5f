"""Structured log of a job: one JSON object per line, with unit, lease and worker ids to search by."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from logitstore.job_objects import LOGS_PREFIX
from logitstore.objects.opening import Objects


class JobLog:
    """Appends events to a file; without a path it takes them and keeps none.

    A full disk costs the events that do not fit, never the job; the next one that does says how many.
    """

    def __init__(self, path: str | None) -> None:
        self._file: BinaryIO | None = None
        if path is not None:
            # Unbuffered: what failed once must not be written later, among other events.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._started = time.monotonic()
        self._num_lost = 0
        self._is_torn = False
        """Whether the file ends within a line."""

    def write(self, event: str, **fields: object) -> None:
        """One event with its ids and figures."""
        if self._file is None:
            return
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "elapsed_sec": round(time.monotonic() - self._started, 3),
            "event": event,
            **fields,
        }
        if self._num_lost:
            record["events_lost_before"] = self._num_lost
        line = (json.dumps(record, default=str) + "\n").encode()
        if self._is_torn:
            line = b"\n" + line
        try:
            num_written = self._file.write(line)
        except OSError:
            num_written = 0
        if num_written == len(line):
            self._num_lost, self._is_torn = 0, False
        else:
            self._num_lost += 1
            self._is_torn = self._is_torn or num_written > 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def log_path(objects: Objects, asked_for: str | None) -> str | None:
    """The file asked for, else one in a local store's folder; a remote store keeps none by itself."""
    if asked_for is not None:
        return asked_for
    if not objects.is_local:
        return None
    folder = Path(objects.uri) / LOGS_PREFIX
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"run-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.jsonl")
