"""Text files that appear whole: a reader, or a process that is killed, never leaves or sees half of one."""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from logitstore.errors import UnsupportedInputError

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
DEAD_AFTER_SEC = 3600.0
"""An unfinished file that was not written to for so long is of a process that was killed."""
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text to a new name beside `path` and rename it, which replaces an earlier file.

    Raises OSError of `path`, and then leaves the earlier file and nothing beside it.
    """
    part = _part_of(path)
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):  # one of writing names no file, one of opening the part
            error.filename = os.fspath(path)
            error.filename2 = None
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """An error that the disk is full, which names no file, names this one: nobody can make room "there"."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRNOS and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside `path`, for a file that takes its place when the block ends.

    Nothing stays of one that raises, nor of earlier ones whose processes were killed. Several at once are
    each whole, and the last one stays.
    """
    _remove_dead_parts(path)
    part = _part_of(path)
    try:
        with naming_full_disk(path):
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _remove_dead_parts(path: Path) -> None:
    oldest_live = time.time() - DEAD_AFTER_SEC
    name = re.compile(rf"\.{re.escape(path.name)}\.(?:[0-9a-f]{{8}}\.)?part")  # without: of earlier versions
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if name.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < oldest_live:
                os.unlink(entry.path)


def remove_parts(folder: Path) -> None:
    """Remove what processes left in `folder` that were killed while they wrote; call it where none writes."""
    for part in folder.iterdir():
        if _PART.fullmatch(part.name):
            part.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Raises UnsupportedInputError for what a user names and a new file must not take the place of.

    A rename would put a plain file where a device or a pipe is, such as /dev/stdout, or the link to it.
    """
    if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
        what = "a link" if path.is_symlink() else "a device or a pipe"
        raise UnsupportedInputError(
            f"{path} is {what}, in whose place a file would be put; name a file, or a folder's new file"
        )


def refuse_input(path: Path, inputs: Iterable[str | Path]) -> None:
    """Raises UnsupportedInputError for an output in whose place a file is that its command reads."""
    if path.exists() and any(os.path.exists(one) and os.path.samefile(one, path) for one in inputs):
        raise UnsupportedInputError(
            f"{path} is a file of the input, which would be replaced; give another name"
        )


def check_place(path: Path, inputs: Iterable[str | Path] = ()) -> None:
    """As `check_replaceable` and `refuse_input`, and where no file can be put.

    Asked before the work that makes the file.
    """
    check_replaceable(path)
    refuse_input(path, inputs)
    if path.is_dir():
        raise UnsupportedInputError(f"{path} is a folder; name a file in it")
    if not path.resolve().parent.is_dir():
        raise UnsupportedInputError(f"{path.parent} is no folder; make it, or write to another place")
