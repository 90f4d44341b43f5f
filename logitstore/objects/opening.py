"""Named objects below one URI: a local directory, an S3 prefix, or any fsspec file system.

`Objects` checks names and gives both kinds of place the same promises: a reader sees an object whole
or not at all, `put_if_absent` lets exactly one of many writers win, `put_if_match` replaces only what
the caller has seen. Credentials travel in `storage_options` and stay out of every message.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from logitstore.errors import (
    UnsafeNameError,
    UnsafeObjectError,
)
from logitstore.objects.addresses import is_local_uri, normalise_uri, one_spelling

MAX_NAME_LENGTH = 512
READ_BUFFER_BYTES = 64 * 1024
MAX_TAGGED_BYTES = 4 * 2**20
"""Most that `get_with_etag` reads: what is swapped is small, and a hostile object need not be."""
MAX_SMALL_BYTES = 64 * 2**20
"""Most that `get_many` reads of each object."""
MAX_UNBOUNDED_BYTES = 512 * 2**20
"""Most that `get` reads where its caller names no bound: the largest are lists of rejects."""
TEMPORARY_PREFIX = ".tmp-"
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing."""

    name: str
    num_bytes: int
    modified_sec: float
    """Unix time of the last write."""


class Backend(Protocol):
    """What a place must offer. Names are already checked; a missing object is ObjectNotFoundError.

    A server that does not keep its conditions is found by `logitstore.objects.probing` when a job begins.
    """

    def require_puts(self) -> None:
        """Raises UnsuitablePlaceError where objects cannot be put one by one."""
        ...

    def require_conditions(self) -> None:
        """Raises UnsuitablePlaceError where the protocol has no conditional writes."""
        ...

    def get_range(self, name: str, start: int, end: int | None) -> bytes:
        """Bytes [start, end), all from `start` without an end."""
        ...

    def get_with_etag(self, name: str) -> tuple[bytes, str]:
        """The object and a tag of this content, for `put_if_match`."""
        ...

    def get_many(self, names: list[str], max_bytes: int) -> list[bytes | None]:
        """Each object, at most `max_bytes` + 1 bytes of it; None for one that is missing."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Whole and lasting when it returns, in place of what was there."""
        ...

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """As `put` of what the block wrote; nothing where it raises."""
        ...

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """False where an object of that name is there: of many writers one gets True."""
        ...

    def put_if_match(self, name: str, data: bytes, etag: str) -> bool:
        """False where the object has another tag by now, or is gone."""
        ...

    def stat(self, name: str) -> ObjectInfo: ...

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Objects whose names begin with `prefix`, by name."""
        ...

    def list_temporary(self) -> list[ObjectInfo]:
        """What writers left that died before their object was whole."""
        ...

    def delete(self, names: list[str]) -> None:
        """Missing ones are no error."""
        ...

    def open(self, name: str, num_bytes: int | None, buffer_bytes: int) -> BinaryIO:
        """A seekable file over the object, that reads `buffer_bytes` at a time; `num_bytes` saves a stat."""
        ...


class Objects:
    """The objects below `uri`. Picklable; a copy in another process opens its own connection."""

    def __init__(self, uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
        self.uri = normalise_uri(uri)
        # A deep copy, since botocore writes into the dictionaries it is given.
        self._storage_options = copy.deepcopy(dict(storage_options or {}))
        self._backend = _open_backend(self.uri, copy.deepcopy(self._storage_options))

    def __reduce__(self) -> tuple[type[Objects], tuple[str, dict[str, Any]]]:
        return (Objects, (self.uri, self._storage_options))

    def __repr__(self) -> str:
        return f"Objects({self.uri!r})"

    @property
    def is_local(self) -> bool:
        return is_local_uri(self.uri)

    @property
    def storage_options(self) -> dict[str, Any]:
        """Those that it was made with."""
        return copy.deepcopy(self._storage_options)

    @property
    def one_spelling(self) -> str:
        """The same for every way to name this place; see `logitstore.objects.addresses`."""
        return one_spelling(self.uri, self._storage_options)

    def require_puts(self) -> None:
        """Raises UnsuitablePlaceError where objects cannot be put one by one, as on the Hub."""
        self._backend.require_puts()

    def require_conditions(self) -> None:
        """Raises UnsuitablePlaceError where nothing but whole objects can be written, as by sftp://: a store
        needs writes under a condition. ObjectStoreError where a folder's system has no locks."""
        self._backend.require_conditions()

    def local_path(self, name: str) -> Path:
        """Path of an object of a local store, for mapping it into memory."""
        if not self.is_local:
            raise ValueError(f"{self.uri} is not a local directory, so {name} has no path; use open()")
        return Path(self.uri, check_name(name))

    def get(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """The whole object; at most `max_bytes` + 1 bytes of it when a bound is given, never more.

        Without one, raises UnsafeObjectError beyond MAX_UNBOUNDED_BYTES: nothing that is read so is larger.
        """
        if max_bytes is not None:
            return self._backend.get_range(check_name(name), 0, max_bytes + 1)
        data = self._backend.get_range(check_name(name), 0, MAX_UNBOUNDED_BYTES + 1)
        if len(data) > MAX_UNBOUNDED_BYTES:
            raise UnsafeObjectError(
                f"{self.uri}: {name} has more than {MAX_UNBOUNDED_BYTES:,} bytes, which nothing of its name "
                "has; it is damaged or hostile: remove it"
            )
        return data

    def get_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer where the object ends before."""
        if not 0 <= start <= end:
            raise ValueError(f"range [{start}, {end}) of {name} must ascend from at least 0")
        return self._backend.get_range(check_name(name), start, end) if end > start else b""

    def get_with_etag(self, name: str) -> tuple[bytes, str]:
        """A small object and a tag of this very content, for `put_if_match`.

        At most MAX_TAGGED_BYTES + 1 bytes of it, for the caller to refuse.
        """
        return self._backend.get_with_etag(check_name(name))

    def get_many(self, names: Iterable[str], *, max_bytes: int = MAX_SMALL_BYTES) -> list[bytes | None]:
        """Several small objects at once, in order; None for each that is not there.

        At most `max_bytes` + 1 bytes of each, for the caller to refuse.
        """
        return self._backend.get_many([check_name(name) for name in names], max_bytes)

    def put(self, name: str, data: bytes) -> None:
        """Create or replace atomically and durably."""
        self._backend.put(check_name(name), data)

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that is put as the object when the block ends; one that raises leaves what was there.

        A local object is never in memory as a whole; one that is put elsewhere is.
        """
        return self._backend.writing(check_name(name))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create durably; False, with nothing changed, if the object was there already.

        A False after a lost reply may mean that this very call created it: where that matters, put
        something unique into `data` and read the object back.
        """
        return self._backend.put_if_absent(check_name(name), data)

    def put_if_match(self, name: str, data: bytes, etag: str) -> bool:
        """Replace durably if the object is still the one `get_with_etag` gave; False otherwise."""
        return self._backend.put_if_match(check_name(name), data, etag)

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def stat(self, name: str) -> ObjectInfo:
        return self._backend.stat(check_name(name))

    def list(self, prefix: str = "") -> list[str]:
        """Names below a folder ("commits/") or all, sorted; unfinished local writes are left out."""
        return [info.name for info in self.list_info(prefix)]

    def list_info(self, prefix: str = "") -> list[ObjectInfo]:
        """As `list`, with sizes and times. Names no store writes are listed too, for `verify`."""
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"prefix {prefix!r} must be a folder and end with a slash, as in 'commits/'")
        if prefix:
            check_name(prefix.removesuffix("/"))
        return sorted(self._backend.list(prefix), key=lambda info: info.name)

    def list_temporary(self) -> list[ObjectInfo]:
        """Unfinished local writes, left by processes that died or still going on."""
        return self._backend.list_temporary()

    def delete(self, name: str) -> None:
        """Remove; no error if it is not there."""
        self._backend.delete([check_name(name)])

    def delete_many(self, names: Iterable[str]) -> None:
        self._backend.delete([check_name(name) for name in names])

    def delete_temporary(self, infos: Iterable[ObjectInfo]) -> None:
        self._backend.delete([info.name for info in infos])

    def open(
        self, name: str, *, num_bytes: int | None = None, buffer_bytes: int = READ_BUFFER_BYTES
    ) -> BinaryIO:
        """A seekable reader that fetches what is read, at least `buffer_bytes` at once from afar.

        `num_bytes`, if known, saves a request.
        """
        return self._backend.open(check_name(name), num_bytes, buffer_bytes)


def is_temporary(name: str) -> bool:
    """Whether a writer makes, or left behind, an object of this name."""
    return name.rsplit("/", 1)[-1].startswith(TEMPORARY_PREFIX)


def check_name(name: str) -> str:
    """`name` if every part of it is plain. Raises UnsafeNameError: names may come from a hostile store."""
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or len(name) > MAX_NAME_LENGTH or not all(_SEGMENT.fullmatch(part) for part in parts):
        raise UnsafeNameError(
            f"object name {name!r:.120} must be relative, made of parts of letters, digits, '.', '_' and "
            f"'-' that do not start with a dot, and have at most {MAX_NAME_LENGTH} characters; "
            "if a store names it, the store is damaged or hostile"
        )
    return name


def _open_backend(uri: str, storage_options: dict[str, Any]) -> Backend:
    # Imported here because fsspec and its event loop cost half a second that local stores need not pay.
    if is_local_uri(uri):
        from logitstore.objects.local import LocalBackend

        return LocalBackend(Path(uri))
    from logitstore.objects.remote import open_remote

    return open_remote(uri, storage_options)
