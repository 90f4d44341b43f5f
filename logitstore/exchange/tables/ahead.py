"""What is made by threads, in order, and never far ahead of who takes it."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

THREADS = 4
PIECES_AHEAD = 2
"""Pieces of one item that wait to be taken; its thread goes on when one has been."""
LOOK_SEC = 0.2
"""How often a thread whose pieces are not taken looks whether they ever will be."""

Item = TypeVar("Item")
Piece = TypeVar("Piece")


@contextmanager
def made_ahead(make: Callable[[Item], Iterable[Piece]], items: Iterable[Item]) -> Iterator[Iterator[Piece]]:
    """The pieces of each item, in order; the threads end with the block, whatever ends it.

    At most THREADS items are at work, and PIECES_AHEAD pieces of each wait. Taking a piece raises what `make`
    raises.
    """
    is_over = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            yield _in_order(pool, make, items, is_over)
        finally:
            is_over.set()


def _in_order(
    pool: ThreadPoolExecutor,
    make: Callable[[Item], Iterable[Piece]],
    items: Iterable[Item],
    is_over: threading.Event,
) -> Iterator[Piece]:
    waiting: deque[_Stream[Piece]] = deque()
    for item in items:
        stream = _Stream[Piece](is_over)
        stream.begin(pool, make, item)
        waiting.append(stream)
        if len(waiting) == THREADS:
            yield from waiting.popleft()
    while waiting:
        yield from waiting.popleft()


class _Stream(Generic[Piece]):
    """The pieces of one item, on their way from a thread."""

    def __init__(self, is_over: threading.Event) -> None:
        self._is_over = is_over
        self._pieces: queue.Queue[Piece | None] = queue.Queue(PIECES_AHEAD)
        """None ends them."""
        self._work: Future[None]

    def begin(self, pool: ThreadPoolExecutor, make: Callable[[Item], Iterable[Piece]], item: Item) -> None:
        self._work = pool.submit(self._fill, make, item)

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._work.result()

    def _fill(self, make: Callable[[Item], Iterable[Piece]], item: Item) -> None:
        try:
            for piece in make(item):
                if not self._put(piece):
                    return
        finally:
            self._put(None)

    def _put(self, piece: Piece | None) -> bool:
        """Whether somebody still takes pieces."""
        while not self._is_over.is_set():
            try:
                self._pieces.put(piece, timeout=LOOK_SEC)
            except queue.Full:
                continue
            return True
        return False
