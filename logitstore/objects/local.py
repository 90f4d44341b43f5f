"""Objects in a local directory: written to a temporary file, made durable, then linked or renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from logitstore.common.whole_file import naming_full_disk
from logitstore.errors import ObjectNotFoundError, ObjectStoreError, UnsafeObjectError
from logitstore.objects.opening import MAX_TAGGED_BYTES, TEMPORARY_PREFIX, ObjectInfo, is_temporary
from logitstore.objects.system import OWN_FLAGS, PLAIN_FILE_FLAGS, lock_file, require_locks

LOCK_NAME = TEMPORARY_PREFIX + "lock"


class LocalBackend:
    """The `Backend` of a directory. It is created by the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get_range(self, name: str, start: int, end: int | None) -> bytes:
        with self._reading(name) as file:
            # What a caller allows may be far more than there is, and would be set aside at once.
            size = os.fstat(file.fileno()).st_size
            file.seek(start)
            return file.read(max(0, (size if end is None else min(end, size)) - start))

    def get_with_etag(self, name: str) -> tuple[bytes, str]:
        data = self.get_range(name, 0, MAX_TAGGED_BYTES + 1)
        return data, _etag(data)

    def get_many(self, names: list[str], max_bytes: int) -> list[bytes | None]:
        result: list[bytes | None] = []
        for name in names:
            try:
                result.append(self.get_range(name, 0, max_bytes + 1))
            except ObjectNotFoundError:
                result.append(None)
        return result

    def require_puts(self) -> None:
        """Files are."""

    def require_conditions(self) -> None:
        """Links and locks keep them, where the system has locks."""
        require_locks()

    def put(self, name: str, data: bytes) -> None:
        with self.writing(name) as file:
            file.write(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        with self._temporary(name) as (temporary, target):
            with _durable(temporary) as file:
                yield file
            os.replace(temporary, target)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        if self._path(name).exists():
            return False
        with self._temporary(name) as (temporary, target):
            with _durable(temporary) as file:
                file.write(data)
            try:
                # A hard link, unlike a rename, refuses to replace: the kernel picks the one winner.
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise ObjectStoreError(
                        f"the file system of {self._root} has no hard links, which a store needs to let "
                        "only one writer commit a unit; put the store on another file system or on S3"
                    ) from error
                raise
        return True

    def put_if_match(self, name: str, data: bytes, etag: str) -> bool:
        with self._lock():
            try:
                current = self.get_range(name, 0, MAX_TAGGED_BYTES + 1)
            except ObjectNotFoundError:
                return False
            if _etag(current) != etag:
                return False
            self.put(name, data)
            return True

    def stat(self, name: str) -> ObjectInfo:
        try:
            status = self._path(name).lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._missing(name) from error
        if stat.S_ISDIR(status.st_mode):  # as for one that reads it
            raise self._missing(name)
        return ObjectInfo(name, status.st_size, status.st_mtime)

    def list(self, prefix: str) -> list[ObjectInfo]:
        return [info for info in self._walk(prefix) if not is_temporary(info.name)]

    def list_temporary(self) -> list[ObjectInfo]:
        return [info for info in self._walk("") if is_temporary(info.name) and info.name != LOCK_NAME]

    def delete(self, names: list[str]) -> None:
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def open(self, name: str, num_bytes: int | None, buffer_bytes: int) -> BinaryIO:
        return self._reading(name)

    def _path(self, name: str) -> Path:
        return self._root / name

    def _missing(self, name: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(f"{self._root / name} does not exist; check the path and the store's name")

    def _reading(self, name: str) -> BinaryIO:
        """A regular file: a pipe would make the reader wait for ever, a device or a link lead elsewhere."""
        path = self._path(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | OWN_FLAGS | PLAIN_FILE_FLAGS)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._missing(name) from error
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
                raise
            raise _not_regular(path) from error
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
        raise self._missing(name) if stat.S_ISDIR(mode) else _not_regular(path)

    @contextlib.contextmanager
    def _temporary(self, name: str) -> Iterator[tuple[Path, Path]]:
        """Where a file beside the target may be written; the caller links or renames it."""
        target = self._path(name)
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}")
        with naming_full_disk(target):
            if not target.parent.is_dir():
                _make_directories(target.parent)
            try:
                yield temporary, target
                _sync_directory(target.parent)
            finally:
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Mutual exclusion of the processes on this machine (and over NFSv4) that compare and swap."""
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._root / LOCK_NAME, os.O_RDWR | os.O_CREAT | OWN_FLAGS, 0o644)
        try:
            lock_file(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        pending = [self._root / prefix if prefix else self._root]
        while pending:
            try:
                entries = os.scandir(pending.pop())
            except (FileNotFoundError, NotADirectoryError):
                continue
            with entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                        continue
                    with contextlib.suppress(FileNotFoundError):  # deleted since the scan
                        status = entry.stat(follow_symlinks=False)
                        name = os.path.relpath(entry.path, self._root).replace(os.sep, "/")
                        yield ObjectInfo(name, status.st_size, status.st_mtime)


@contextlib.contextmanager
def _durable(path: Path) -> Iterator[BinaryIO]:
    """A new file, on the disk when the block ends."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _not_regular(path: Path) -> UnsafeObjectError:
    return UnsafeObjectError(
        f"{path} is a link, a pipe or a device, and a store holds regular files only: remove it, or copy the "
        "store with links resolved (cp -rL)"
    )


def _etag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _make_directories(path: Path) -> None:
    """Create `path` and its parents so that each survives a power cut."""
    if not path.parent.is_dir():
        _make_directories(path.parent)
    path.mkdir(exist_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
