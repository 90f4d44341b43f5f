"""Structured log of a job: one JSON object per line, with unit, lease and worker ids to search by."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TextIO


class JobLog:
    """Appends events to a file; without a path it takes them and keeps none."""

    def __init__(self, path: str | None) -> None:
        self._file: TextIO | None = None
        if path is not None:
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._started = time.monotonic()

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
        self._file.write(json.dumps(record, default=str) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
