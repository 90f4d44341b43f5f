"""Processes that a measurement started, and their end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable

import psutil

WAIT_SEC = 2


def session_processes(session: int) -> list[psutil.Process]:
    """Processes of a session: what its leader started, even where the parent is gone."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def end_session(leader: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a session, and the leader's descendants, which may have their own sessions."""
    left = {*_descendants(leader.pid), *session_processes(leader.pid)}
    _kill(left)
    leader.wait()
    psutil.wait_procs([process for process in left if process.pid != leader.pid], timeout=WAIT_SEC)


def end_descendants() -> None:
    """Kill everything below this process, also what is only just being started."""
    _kill(_descendants(os.getpid()))


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
