"""Commands killed at a chosen change of the file system, each in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
"""Audit events of Python that change a file system, beside "open" for writing."""


def run_killed(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str], root: Path, kill_at: int | None
) -> tuple[int | None, int, str]:
    """(exit status, None if it was killed; changes below `root`; what it printed) of a child process.

    It is killed by SIGKILL right before its change number `kill_at`, counted from 0.
    """
    log, count = root.parent / "killed.log", root.parent / "killed.count"
    log.unlink(missing_ok=True)
    count.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        status = 99
        try:
            _take_output(log)
            seen = _count_changes(root, kill_at)
            try:
                status = main(arguments)
            except SystemExit as leaving:
                status = int(leaving.code or 0)
            sys.stdout.flush()
            count.write_text(str(seen[0]))
        except BaseException:  # noqa: BLE001 - the child must never come back into the test
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(ended)
    if killed:
        assert os.WTERMSIG(ended) == signal.SIGKILL
    printed = log.read_text(errors="replace") if log.exists() else ""
    changes = int(count.read_text()) if count.exists() else 0
    return None if killed else os.waitstatus_to_exitcode(ended), changes, printed


def _take_output(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)


def _count_changes(root: Path, kill_at: int | None) -> list[int]:
    """A list of one number, which goes up with every change below `root` from now on.

    A folder that several threads make is one change, whichever of them is first.
    """
    seen, inside = [0], f"{root}{os.sep}"
    made: set[str] = set()
    lock = threading.Lock()

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, (str, os.PathLike)) or not f"{os.fspath(path)!s}".startswith(inside):
            return
        with lock:
            if event == "os.mkdir" and f"{os.fspath(path)!s}" in made:
                return
            if event == "os.mkdir":
                made.add(f"{os.fspath(path)!s}")
            elif event == "os.rmdir":
                made.discard(f"{os.fspath(path)!s}")
            if seen[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1

    sys.addaudithook(look)
    return seen
