"""Using storage that may fail for a while: again and again, ever more slowly, for a set time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

FIRST_PAUSE_SEC = 0.5
LONGEST_PAUSE_SEC = 20.0
Result = TypeVar("Result")


def persistently(
    use_storage: Callable[[], Result], for_sec: float, on_pause: Callable[[], None] = lambda: None
) -> Result:
    """What `use_storage` returns, tried again while it raises OSError (which ObjectStoreError is).

    Raises the last error once `for_sec` seconds would be over. That an object is missing or there already
    is no failure of storage, and raised at once.
    """
    give_up_at = time.monotonic() + for_sec
    pause_sec = FIRST_PAUSE_SEC
    while True:
        try:
            return use_storage()
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError:
            if time.monotonic() + pause_sec > give_up_at:
                raise
        on_pause()
        time.sleep(pause_sec)
        pause_sec = min(2 * pause_sec, LONGEST_PAUSE_SEC)
