"""`python -m logitstore.processes.with_parent PID MODULE ...`: `python -m MODULE ...`, ending with PID.

For commands that start commands of ours: killed, they could not end what they started, and that would still
hold its output folder when the same command is given again.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def ending_with_this(arguments: Sequence[str]) -> list[str]:
    """The command line of `python -m` with these arguments, which the kernel (Linux) ends with this process,
    or rather with the thread that starts it."""
    return [sys.executable, "-P", "-m", __name__, str(os.getpid()), *arguments]


def main(parent: int, arguments: Sequence[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGKILL)
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
