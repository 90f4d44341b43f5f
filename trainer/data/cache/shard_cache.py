"""Copies of shards on a local disk, checked, bounded, and shared by all processes of a machine.

All lies in a folder of its own, FOLDER_NAME, below the directory that was given, and only regular files
with the names of copies are counted, read or removed there: nothing is proved ours by its ending. Where
the disk is full, reading goes on without the cache.

Files are named by content (the shard's checksum), so stores and runs can share a folder. Locks are the
kernel's (`flock` on the files themselves): a process that dies leaves none behind, and nothing is kept
in shared memory. A copy being read is locked shared, a download exclusively; neither is evicted. What a
dead process had downloaded is continued by whoever needs it, or evicted like a copy.
"""

from __future__ import annotations

import os
import re
import stat
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from logitstore.common.whole_file import DISK_FULL_ERRNOS
from logitstore.errors import CorruptShardError
from logitstore.manifest.fields import ShardEntry
from logitstore.objects.system import lock_file
from trainer.data.cache.download import checksum_of, continue_download
from trainer.data.cache.locked_files import open_exclusive, open_own, open_shared, remove_unused
from trainer.errors import CacheFullError, CacheTooSmallError, SettingError, TrainingWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitstore.objects.opening import Objects

FOLDER_NAME = "penumbra-shards"
LOCK_NAME = "evict.lock"
_COPY_NAME = re.compile(r"[0-9a-f]{32}\.arrow")
_PARTIAL_NAME = re.compile(r"[0-9a-f]{32}\.([0-9]{1,18})\.part")
DOWNLOAD_ATTEMPTS = 3
"""Whole downloads whose checksum may be wrong before the shard is called corrupt."""
ROOM_WAIT_SEC = 20.0
"""How long a reader waits for others to be done with their shards before it calls the cache too small."""
ROOM_POLL_SEC = 0.05


class ShardCache:
    """`open` gives a local, checked copy of a shard; `fetch` makes one ahead of time."""

    def __init__(self, directory: str | os.PathLike[str], limit_bytes: int | None = None) -> None:
        """`directory` may be anybody's; the copies lie in FOLDER_NAME below it. Raises SettingError."""
        self.directory = Path(directory) / FOLDER_NAME
        self.limit_bytes = limit_bytes
        self.is_full = False
        """The disk was full: this process uses the cache no more."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(
                f"cache_dir: {self.directory} cannot be made ({error.strerror}); give a folder that can be "
                "written, or leave cache_dir out to read remotely"
            ) from None
        if self.directory.is_symlink():
            raise SettingError(
                f"cache_dir: {self.directory} is a symbolic link; the cache follows none, so that it removes "
                "nothing elsewhere: give the folder itself as cache_dir"
            )

    def require(self, num_bytes: int, why: str) -> None:
        """Raise CacheTooSmallError now rather than in the middle of an epoch."""
        if self.limit_bytes is not None and num_bytes > self.limit_bytes:
            raise CacheTooSmallError(
                f"cache_limit is {self.limit_bytes:,} bytes, but {why} takes {num_bytes:,}; raise "
                "cache_limit, lower num_splits or predownload, or leave cache_dir out to read remotely"
            )

    @contextmanager
    def open(self, objects: Objects, entry: ShardEntry) -> Iterator[BinaryIO]:
        """The shard's file, downloaded if need be; it stays in the cache at least until the end.

        Other processes may be reading all that could be evicted: raises CacheTooSmallError if none of
        them moves on within ROOM_WAIT_SEC.
        """
        self.require(entry.num_bytes, f"the shard {entry.name} alone")
        num_wrong = 0
        while num_wrong < DOWNLOAD_ATTEMPTS:
            self._fetch_patiently(objects, entry)
            with open_shared(self._path(entry)) as file:
                if file is None:
                    continue  # evicted in between
                if checksum_of(file) == entry.checksum:
                    os.utime(file.fileno())
                    yield file
                    return
            self._path(entry).unlink(missing_ok=True)
            num_wrong += 1
        raise CorruptShardError(
            f"{entry.name}: {DOWNLOAD_ATTEMPTS} copies in {self.directory} did not keep their checksum "
            f"{entry.checksum}; check the disk, or give another cache_dir"
        )

    def fetch(self, objects: Objects, entry: ShardEntry) -> None:
        """Have a copy in the cache. Waits for another process that downloads the same shard.

        Raises CacheTooSmallError at once where there is no room for it now, CacheFullError where the disk
        is full.
        """
        try:
            self._fetch(objects, entry)
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS:
                raise
            self._give_up(entry, error)

    def _give_up(self, entry: ShardEntry, error: OSError) -> NoReturn:
        self._partial_path(entry).unlink(missing_ok=True)
        self.is_full = True
        message = (
            f"cache_dir: the disk of {self.directory} is full ({error.strerror}); shards are read from the "
            "store from now on. Free some space, or set cache_limit below what the disk has"
        )
        warnings.warn(message, TrainingWarning, stacklevel=2)
        raise CacheFullError(message) from error

    def _fetch(self, objects: Objects, entry: ShardEntry) -> None:
        path = self._path(entry)
        while not path.exists():
            self._claim_room(entry)
            with open_exclusive(self._partial_path(entry)) as partial:
                if partial is not None:
                    self._download(objects, entry, partial)
                    with self._counting():
                        os.rename(self._partial_path(entry), path)

    def _fetch_patiently(self, objects: Objects, entry: ShardEntry) -> None:
        deadline = time.monotonic() + ROOM_WAIT_SEC
        while True:
            try:
                return self.fetch(objects, entry)
            except CacheTooSmallError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(ROOM_POLL_SEC)

    def num_bytes(self) -> int:
        """Bytes that the copies take or, where a download is going on, will take."""
        return sum(size for _, size, _ in self._files())

    def _path(self, entry: ShardEntry) -> Path:
        return self.directory / f"{entry.checksum.rpartition(':')[2]}.arrow"

    def _partial_path(self, entry: ShardEntry) -> Path:
        # The full size is in the name, so that room for it counts as taken from the start.
        return self._path(entry).with_suffix(f".{entry.num_bytes}.part")

    def _download(self, objects: Objects, entry: ShardEntry, partial: BinaryIO) -> None:
        for _ in range(DOWNLOAD_ATTEMPTS):
            continue_download(objects, entry, partial)
            if checksum_of(partial) == entry.checksum:
                return
            partial.truncate(0)
        self._partial_path(entry).unlink()
        raise CorruptShardError(
            f"{entry.name} of {objects.uri} was downloaded {DOWNLOAD_ATTEMPTS} times and never had the "
            f"checksum {entry.checksum} of its commit record; run `penumbra store verify {objects.uri}`"
        )

    def _claim_room(self, entry: ShardEntry) -> None:
        """Make the shard's partial file, evicting what was used longest ago until all of it fits."""
        with self._counting():
            if self._path(entry).exists():
                return
            if self.limit_bytes is not None:
                self._evict(self.limit_bytes - entry.num_bytes, entry)
            os.close(open_own(self._partial_path(entry), os.O_WRONLY | os.O_CREAT))

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """One process at a time adds or renames files, so that none is missed when bytes are counted."""
        with os.fdopen(open_own(self.directory / LOCK_NAME, os.O_RDWR | os.O_CREAT), "r+b") as lock:
            lock_file(lock.fileno())
            yield

    def _evict(self, limit_bytes: int, entry: ShardEntry) -> None:
        own_path = self._partial_path(entry)
        files = [file for file in self._files() if file[0] != own_path]
        excess = sum(size for _, size, _ in files) - limit_bytes
        for path, size, _ in sorted(files, key=lambda item: item[2]):
            if excess > 0 and remove_unused(path):
                excess -= size
        if excess > 0:
            raise CacheTooSmallError(
                f"cache_limit is {self.limit_bytes:,} bytes and {self.directory} would be {excess:,} over it "
                f"with {entry.name}, while every other copy is being read; raise cache_limit, or lower "
                "num_splits or the number of workers"
            )

    def _files(self) -> list[tuple[Path, int, float]]:
        """(path, bytes it takes or will take, time of last use) of copies and partial copies."""
        found = []
        for path in self.directory.iterdir():
            partial = _PARTIAL_NAME.fullmatch(path.name)
            if not partial and not _COPY_NAME.fullmatch(path.name):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # renamed or evicted since the listing
            if stat.S_ISREG(status.st_mode):
                found.append((path, int(partial[1]) if partial else status.st_size, status.st_mtime))
        return found
