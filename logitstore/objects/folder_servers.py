"""Servers of folders, as sftp:// has them: what they want that object stores do not."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

FOLDER_SCHEMES = ("sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs", "webdav", "webdavs")
"""A file can only be put into a folder that is there. Elsewhere, to make a folder may be to make a bucket."""
ONE_AT_A_TIME = ("sftp", "ssh", "ftp")
"""Their connection is for one thread at a time: of two that wait, either may be given the other's reply, and
one then waits for ever."""


class _Turn:
    """A lock for all such servers, since fsspec gives stores of one server the same connection."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            # In a child its owner may be a thread that is only in the parent.
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.lock = threading.RLock()


_turn = _Turn()


def turn_at(scheme: str) -> contextlib.AbstractContextManager[Any]:
    """What a thread holds while it makes requests of a server of this scheme."""
    return _turn.lock if scheme in ONE_AT_A_TIME else contextlib.nullcontext()


def make_folder(file_system: Any, path: str) -> None:
    """The folder and those above it, which others may make meanwhile."""
    try:
        file_system.makedirs(path, exist_ok=True)
    except OSError:
        if not file_system.isdir(path):
            raise
