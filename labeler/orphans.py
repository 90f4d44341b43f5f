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
    command = [sys.executable, __file__, str(os.getpid())]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def end_orphans(parent: psutil.Process) -> None:
    """Returns when `parent` is gone and everything that was seen below it has been killed."""
    known: set[psutil.Process] = set()
    with suppress(psutil.NoSuchProcess):
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            known.update(parent.children(recursive=True))
            time.sleep(CHECK_SEC)
    for process in known - {psutil.Process()}:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    end_orphans(psutil.Process(int(sys.argv[1])))
