"""Engines that share a GPU start one after the other.

While an engine starts, vLLM measures how much of the GPU's memory is gone since it began, and takes all of it
for its own: of two that start together one finds no room for its cache, or ends at an assertion.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from logitstore.objects.system import lock_file, require_locks

logger = logging.getLogger(__name__)
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Environment by which a process sees some of a machine's GPUs; Ray sets it for its actors."""


def gpus_of_this_process() -> list[str]:
    """Names of the GPUs that it was told to see, in the order in which every process takes its turns."""
    listed = next((os.environ[name] for name in VISIBLE if os.environ.get(name)), "all")
    return sorted({word.strip() for word in listed.split(",") if word.strip()})


@contextmanager
def turns_on_gpus(folder: Path | None = None) -> Iterator[None]:
    """Have the GPUs of this process for its start alone, among the user's processes on this machine.

    A process that ends lets go of them.
    """
    if folder is None:
        folder = Path(tempfile.gettempdir()) / f"penumbra-gpus-{os.getuid()}"
    with ExitStack() as held:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in gpus_of_this_process():
                held.enter_context(_turn_on(folder / f"{name.replace(os.sep, '_')}.lock"))
        except OSError as error:
            logger.warning(
                "this engine starts without waiting for others (%s: %s); let engines that share a GPU start "
                "one after the other, or set TMPDIR to a folder that can be written",
                folder,
                error.strerror,
            )
        yield


@contextmanager
def _turn_on(path: Path) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as file:
        try:
            lock_file(file.fileno(), wait=False)
        except BlockingIOError:
            logger.info("another engine is starting on GPU %s; this one starts after it", path.stem)
            lock_file(file.fileno())
        try:
            yield
        finally:
            # An engine's process may have been forked with the file open: closing it here is not enough.
            require_locks().flock(file.fileno(), require_locks().LOCK_UN)
