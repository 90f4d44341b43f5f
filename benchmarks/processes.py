"""Processes that a measurement started, and their end."""

from __future__ import annotations

import os
import subprocess

import psutil


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
    try:
        descendants = psutil.Process(leader.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        descendants = []
    for process in {*descendants, *session_processes(leader.pid)}:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    leader.wait()
