"""SIGTERM and SIGINT as a request: the first to drain, the second to stop at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Takes over both signals while entered, in the main thread."""

    def __init__(self) -> None:
        self._count = 0
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self._count > 0

    @property
    def at_once(self) -> bool:
        return self._count > 1

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._take)
        return self

    def take_again(self) -> None:
        """Take the signals back from a library that installed handlers of its own, as `ray.init` does."""
        for number in SIGNALS:
            signal.signal(number, self._take)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
