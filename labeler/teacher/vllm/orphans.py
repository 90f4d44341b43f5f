"""Ends what a process has started once it is gone, however it went.

vLLM's engine core does not notice that the process it works for was killed: it would keep its GPUs from the
next one for good. A small process of its own watches, for which this file is also the script.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache

import psutil

CHECK_SEC = 1.0


@cache
def start_guard() -> None:
    """From now on nothing below this process outlives it, but for what it starts in its last second."""
    # It leaves the family at once: Ray ends the children of an actor that it kills.
    command = [sys.executable, __file__, str(os.getpid())]
    quiet = subprocess.DEVNULL
    subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True, check=True)


def end_orphans(parent: psutil.Process) -> None:
    """Returns when `parent` is gone and everything that was seen below it has been killed."""
    known: set[psutil.Process] = set()
    with suppress(psutil.NoSuchProcess):
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            known.update(descendants(parent.pid))
            time.sleep(CHECK_SEC)
    for process in known - {psutil.Process()}:  # The first look may still find this process among them.
        with suppress(psutil.NoSuchProcess):
            process.kill()


def descendants(process_id: int) -> list[psutil.Process]:
    """All below a process."""
    return psutil.Process(process_id).children(recursive=True)


if __name__ == "__main__":
    watched = psutil.Process(int(sys.argv[1]))
    if os.fork() == 0:
        end_orphans(watched)
