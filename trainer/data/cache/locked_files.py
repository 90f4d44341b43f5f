"""Files of a folder that several processes share: regular ones only, under the kernel's locks."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from logitstore.objects.system import OWN_FLAGS, PLAIN_FILE_FLAGS, lock_file
from trainer.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def open_shared(path: Path) -> Iterator[BinaryIO | None]:
    """The file under a shared lock, or None if it is no longer there."""
    try:
        file = os.fdopen(open_own(path, os.O_RDONLY), "rb")
    except FileNotFoundError:
        yield None
        return
    with file:
        lock_file(file.fileno(), shared=True)
        yield file if os.fstat(file.fileno()).st_nlink else None


@contextmanager
def open_exclusive(path: Path) -> Iterator[BinaryIO | None]:
    """The file under an exclusive lock; None if it was renamed or removed meanwhile."""
    try:
        file = os.fdopen(open_own(path, os.O_RDWR), "r+b")
    except FileNotFoundError:
        yield None
        return
    with file:
        lock_file(file.fileno())
        try:
            same = os.stat(path).st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            same = False
        yield file if same else None


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a regular file, never of what a link points to. Raises SettingError for others."""
    try:
        descriptor = os.open(path, flags | PLAIN_FILE_FLAGS | OWN_FLAGS, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        descriptor = -1
    if descriptor >= 0 and stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    if descriptor >= 0:
        os.close(descriptor)
    raise SettingError(
        f"cache_dir: {path} is a link, a folder or a device, and no file of the cache; remove it, or give "
        "another cache_dir"
    )


def remove_unused(path: Path) -> bool:
    """Remove a copy that nobody reads, or a partial one that nobody downloads."""
    try:
        with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
            lock_file(file.fileno(), wait=False)
            path.unlink(missing_ok=True)
            return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
