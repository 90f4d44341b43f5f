"""The one table of exit statuses, for all commands and for every error that says what a command ends with."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """What the exit status of every command means."""

    DONE = 0
    FAILED = 1
    """The work was done in part or not at all, or problems were found."""
    WRONG = 2
    """Wrong usage or configuration, or a place, input or store that does not fit; nothing was started."""
    UNREACHABLE = 3
    """A store cannot be read or written, or no cluster answers."""
    STOPPED = 4
    """Stopped by a signal before its end; the same command goes on."""
    BUSY = 5
    """Somebody else is at work on it, or there is no such job."""
    INTERRUPTED = 130
    """Ctrl-C."""


EXIT_STATUSES = """\
exit status: 0 done; 1 the work failed, or problems were found; 2 wrong usage or configuration, or a place,
input or store that does not fit; 3 a store cannot be read or written, or no cluster answers; 4 stopped by a
signal before its end; 5 somebody else is at work on it, or there is no such job; 130 interrupted"""
