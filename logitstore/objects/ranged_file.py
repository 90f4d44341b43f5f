"""A remote object as a seekable file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from logitstore.errors import ObjectStoreError

if TYPE_CHECKING:
    from logitstore.objects.remote import RemoteBackend

MAX_WHOLE_BYTES = 256 * 2**20
"""Largest object that is kept whole in memory because its server knows no ranges."""


class RangedFile(io.RawIOBase):
    """A remote object as a seekable raw file; every read is one ranged request."""

    def __init__(self, backend: RemoteBackend, name: str, num_bytes: int) -> None:
        super().__init__()
        self._backend, self._name, self._num_bytes = backend, name, num_bytes
        self._position = 0
        self._whole: bytes | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._num_bytes)
        if end <= self._position:
            return 0
        if self._whole is None and self._backend.ignores_ranges:
            self._whole = self._fetch_whole()
        if self._whole is None:
            data = self._backend.get_range(self._name, self._position, end)
        else:
            data = self._whole[self._position : end]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetch_whole(self) -> bytes:
        """Once, since every part of it would cost the whole again."""
        if self._num_bytes > MAX_WHOLE_BYTES:
            raise ObjectStoreError(
                f"{self._name} has {self._num_bytes:,} bytes, and its server ignores ranges, so that each "
                f"part would cost the whole, of which at most {MAX_WHOLE_BYTES:,} are kept in memory; copy "
                "the store to a folder and read that"
            )
        return self._backend.get_range(self._name, 0, self._num_bytes)
