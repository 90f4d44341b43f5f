"""SIGTERM, which Slurm, Kubernetes and others send some time before they kill. Loads no torch."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class StoppedError(KeyboardInterrupt):
    """A command is ended by SIGTERM, which is no error of its work, so that nothing catches it as one."""


@contextlib.contextmanager
def stopping_at_sigterm() -> Iterator[None]:
    """While it lasts, SIGTERM raises StoppedError wherever the main thread is."""

    def stop(*_: object) -> None:
        raise StoppedError("stopped by SIGTERM; the same command goes on from checkpoints and answers so far")

    with _taken_by(stop):
        yield


@contextlib.contextmanager
def asked_by_sigterm() -> Iterator[threading.Event]:
    """While it lasts, SIGTERM sets the event and does nothing else."""
    asked = threading.Event()
    with _taken_by(lambda *_: asked.set()):
        yield asked


@contextlib.contextmanager
def _taken_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Outside the main thread, which alone may take signals, SIGTERM stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
