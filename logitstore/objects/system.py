"""What only some systems have: locks on files, and ways of opening that refuse links and never wait.

Linux and macOS have all of it. Windows has none: stores are read, copied and exported there, and what takes
part in writing one is refused in words.
"""

from __future__ import annotations

import os
from typing import Any

from logitstore.errors import ObjectStoreError

OWN_FLAGS = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""Bytes as they are, in this process alone."""
PLAIN_FILE_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
"""Neither follow a link nor wait for a pipe. Where the system has no such flags, links are followed."""


def require_locks() -> Any:
    """The module of such locks. Raises ObjectStoreError where this system has none."""
    try:
        import fcntl
    except ImportError:
        raise ObjectStoreError(
            "this system has no POSIX file locks, without which two writers would spoil each other's work: "
            "stores can be read here and not written, nor shards cached; write on Linux, macOS or in WSL"
        ) from None
    return fcntl


def lock_file(descriptor: int, *, shared: bool = False, wait: bool = True) -> None:
    """Lock a file among the processes of this machine (and over NFSv4) until it is closed.

    Raises:
        BlockingIOError: somebody else has it, and `wait` is false.
        ObjectStoreError: this system has no such locks.
    """
    fcntl = require_locks()
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
