"""What models have answered so far, one JSON object a line: what is in it is not asked again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, Any

from logitstore.common.config_file import ConfigError


class AnswerBook:
    """Answers by key, appended to a file as they come. A line that was cut off is dropped at opening.

    Raises ConfigError for a file that holds anything else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answers: dict[str, dict[str, Any]] = {}
        self._file: IO[str] | None = None
        if path.exists():
            self._read()

    def _read(self) -> None:
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                self._answers[record.pop("key")] = record
            except (ValueError, TypeError, AttributeError, KeyError):
                raise ConfigError(
                    f"{self._path}:{number}: {line[:80]!r} is no answer that was kept here; remove the "
                    "line, or the file, and what is missing is asked again"
                ) from None
        if len(whole) < len(data):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._answers[key]

    def add(self, key: str, answer: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        self._answers[key] = answer
        self._file.write(json.dumps({"key": key, **answer}, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def key_of(*parts: Any) -> str:
    """One name for what was asked of whom."""
    return hashlib.blake2b(json.dumps(parts, ensure_ascii=False).encode(), digest_size=16).hexdigest()
