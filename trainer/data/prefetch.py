"""Run an iterator ahead of its consumer, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_POLL_SEC = 0.1


class _End:
    """Closes the queue, with the error that ended the producer, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def run_ahead(make_iterator: Callable[[], Iterator[Item]], depth: int) -> Generator[Item, None, None]:  # noqa: C901
    """Items of `make_iterator()`, made by a thread up to `depth` of them ahead.

    Its errors are raised here, in their place. Closing the generator stops the thread, also when it
    waits for room; a thread never outlives its generator by more than the item it is making.
    """
    items: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: Item | _End) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=_POLL_SEC)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            iterator = make_iterator()
            try:
                while not stopped.is_set():
                    item = next(iterator, None)
                    if item is None or not put(item):
                        break
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # handed to the consumer, which raises it  # noqa: BLE001
            put(_End(error))
        else:
            put(_End(None))

    thread = threading.Thread(target=produce, name="logit-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = items.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        if thread is not threading.current_thread():  # in which garbage is collected, as in any other
            thread.join()
