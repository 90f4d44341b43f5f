"""Objects behind fsspec; S3 and web servers have their own requests in `s3.py` and `http.py`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import fsspec

from logitstore.common.secrets import BLANKED, redact_text
from logitstore.errors import (
    AccessRefusedError,
    ObjectNotFoundError,
    ObjectStoreError,
    UnsuitablePlaceError,
    UnsupportedInputError,
)
from logitstore.objects.file_systems import no_file_system, wrong_options
from logitstore.objects.folder_servers import FOLDER_SCHEMES, make_folder, turn_at
from logitstore.objects.opening import MAX_TAGGED_BYTES, TEMPORARY_PREFIX, ObjectInfo
from logitstore.objects.ranged_file import RangedFile

S3_SCHEMES = ("s3", "s3a")
HTTP_SCHEMES = ("http", "https")
EXCLUSIVE_CREATE_SCHEMES = ("memory", "gs", "gcs")
"""Schemes other than S3 whose fsspec `mode="create"` is one atomic step of the server."""

MAX_SMALL_READS_AT_ONCE = 256
SIZES_ASKED_AT_ONCE = 16
REFUSALS = ("401", "403", "405", "AccessDenied", "Forbidden", "Unauthorized", "MethodNotAllowed")


class RemoteBackend:
    """The `Backend` of an fsspec file system; S3 gets its conditional requests in `S3Backend`."""

    ignores_ranges = False
    """Whether the server was seen to send whole objects where a range was asked for."""

    def __init__(self, uri: str, storage_options: dict[str, Any]) -> None:
        self._uri = uri
        self._scheme = urlsplit(uri).scheme
        self._storage_options = storage_options
        self._process_id = os.getpid()
        with self._translated("", writing=True):
            self._file_system = self._connect()
        # _strip_protocol is fsspec's documented way to turn a URL into its own path.
        self._root = str(self._file_system._strip_protocol(uri))  # noqa: SLF001

    def get_range(self, name: str, start: int, end: int | None) -> bytes:
        if end == 0:
            return b""
        try:
            with self._translated(name):
                # Unset rather than zero: whole objects need no Range header, and empty ones allow none.
                return self._fs.cat_file(self._path(name), start=start or None, end=end)
        except _PastTheEndError:
            return b""

    def get_with_etag(self, name: str) -> tuple[bytes, str]:
        data = self.get_range(name, 0, MAX_TAGGED_BYTES + 1)
        return data, hashlib.blake2b(data, digest_size=16).hexdigest()

    def get_many(self, names: list[str], max_bytes: int) -> list[bytes | None]:
        # Not bounded by ranges, which empty objects do not allow: a listing told the sizes before.
        del max_bytes
        result: list[bytes | None] = []
        for first in range(0, len(names), MAX_SMALL_READS_AT_ONCE):
            batch = names[first : first + MAX_SMALL_READS_AT_ONCE]
            paths = [self._path(name) for name in batch]
            with self._translated(batch[0]):
                found = self._fs.cat(paths, on_error="return", recursive=False)
            for name, path in zip(batch, paths, strict=True):
                result.append(self._found_or_none(name, found[path]))
        return result

    def put(self, name: str, data: bytes) -> None:
        with self._translated(name, writing=True):
            try:
                self._fs.pipe_file(self._path(name), data)
            except FileNotFoundError:
                if self._scheme not in FOLDER_SCHEMES:
                    raise
                make_folder(self._fs, self._path(name).rpartition("/")[0])
                self._fs.pipe_file(self._path(name), data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        data = io.BytesIO()  # it grows, and gives its bytes, without being copied
        yield data
        self.put(name, data.getvalue())

    def put_if_absent(self, name: str, data: bytes) -> bool:
        if self._scheme not in EXCLUSIVE_CREATE_SCHEMES:
            raise self._unsupported("create an object only if it is absent")
        try:
            with self._translated(name, writing=True):
                self._fs.pipe_file(self._path(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def put_if_match(self, name: str, data: bytes, etag: str) -> bool:
        raise self._unsupported("replace an object only if it is unchanged")

    def stat(self, name: str) -> ObjectInfo:
        with self._translated(name):
            details = self._fs.info(self._path(name))
            if details.get("size") is None:
                details = {**details, "size": len(self._fs.cat_file(self._path(name)))}
            return _object_info(name, details)

    def list(self, prefix: str) -> list[ObjectInfo]:
        root = self._path(prefix.removesuffix("/")) if prefix else self._root
        with self._translated(prefix):
            self._fs.invalidate_cache()  # sizes and names of an earlier listing count for reading too
            found = self._fs.find(root, detail=True)
        skip = len(self._root) + 1
        # Some servers keep an emptied folder as an entry of its own. Temporary files are a local writer's.
        listed = {
            path[skip:]: details
            for path, details in found.items()
            if details.get("type") == "file" and path.startswith(self._path(prefix)) and path[-1] != "/"
            if TEMPORARY_PREFIX not in path[skip:]
        }
        unsized = [name for name, details in listed.items() if details.get("size") is None]
        known = [_object_info(name, listed[name]) for name in listed.keys() - set(unsized)]
        return known + self._stat_all(unsized)

    def list_temporary(self) -> list[ObjectInfo]:
        return []

    def delete(self, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(ObjectNotFoundError), self._translated(name, writing=True):
                self._fs.rm_file(self._path(name))

    def open(self, name: str, num_bytes: int | None, buffer_bytes: int) -> BinaryIO:
        size = self.stat(name).num_bytes if num_bytes is None else num_bytes
        return io.BufferedReader(RangedFile(self, name, size), buffer_size=buffer_bytes)

    @property
    def _fs(self) -> Any:
        if self._process_id != os.getpid():  # after a fork the connections belong to the parent
            self._file_system, self._process_id = self._connect(), os.getpid()
        return self._file_system

    def _stat_all(self, names: list[str]) -> list[ObjectInfo]:
        """Sizes of objects that a listing named without them; objects that are gone by now are left out."""

        def found(name: str) -> ObjectInfo | None:
            try:
                return self.stat(name)
            except ObjectNotFoundError:
                return None

        if not names:
            return []
        with ThreadPoolExecutor(SIZES_ASKED_AT_ONCE) as pool:
            return [info for info in pool.map(found, names) if info is not None]

    def _connect(self) -> Any:
        return self._file_system_of(self._storage_options)

    def _file_system_of(self, options: dict[str, Any]) -> Any:
        try:
            kind = fsspec.get_filesystem_class(self._scheme)
            # Documented for authors of file systems: what of the URL they are made with, such as a host.
            named = kind._get_kwargs_from_urls(self._uri)  # noqa: SLF001
            return kind(**{**named, **options})
        except (
            TypeError
        ) as error:  # of a constructor: an option without a default, or one that it does not know
            raise wrong_options(self._uri, self._scheme, error) from None
        except (ImportError, ValueError) as error:
            if isinstance(error, ValueError) and "Protocol not known" not in str(error):
                raise
            raise no_file_system(self._uri, self._scheme, error) from None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _found_or_none(self, name: str, found: bytes | Exception) -> bytes | None:
        if isinstance(found, FileNotFoundError):
            return None
        if isinstance(found, Exception):
            with self._translated(name):
                raise found
        return found

    def require_puts(self) -> None:
        """Taken for granted; one that fails says so."""

    def require_conditions(self) -> None:
        raise self._unsupported("replace an object only if it is unchanged")

    def _unsupported(self, what: str) -> UnsuitablePlaceError:
        return UnsuitablePlaceError(
            f"{self._uri}: {self._scheme}:// cannot {what} in one step, which writing a store needs; write "
            "to a folder of this machine, or to an s3:// server that keeps conditional PUTs, "
            "and bring the finished store here with `penumbra store copy` (reading works from anywhere)"
        )

    @contextlib.contextmanager
    def _translated(self, name: str, *, writing: bool = False) -> Iterator[None]:
        """Errors of fsspec, botocore and aiohttp as ours, in few words and without credentials."""
        where = f"{self._uri}/{name}" if name else self._uri
        try:
            with turn_at(self._scheme):
                yield
        except (
            ObjectStoreError,
            ObjectNotFoundError,
            UnsupportedInputError,
            FileExistsError,
            _PastTheEndError,
        ):
            raise
        except FileNotFoundError:
            home = "folder" if self._scheme in FOLDER_SCHEMES else "bucket"
            remedy = f"check that the {home} exists" if writing else "check the URL"
            raise ObjectNotFoundError(f"{where} does not exist; {remedy}") from None
        except Exception as error:  # noqa: BLE001
            # Every library below has its own root class; all of them mean that the request failed.
            if error_code(error) in ("InvalidRange", "416"):
                raise _PastTheEndError from None
            if isinstance(error, NotImplementedError):
                raise self._unsupported("do that") from None
            said = " ".join(self._without_secrets(str(error)).split())  # Azure's have ten lines
            reason = f"({type(error).__name__}: {said:.300})"
            if isinstance(error, PermissionError) or error_code(error) in REFUSALS:
                raise AccessRefusedError(
                    f"{where}: the server refuses this request {reason}; check the credentials and what they "
                    "permit"
                ) from None
            raise ObjectStoreError(
                f"{where}: the request failed after bounded retries {reason}; "
                "check the endpoint, the network and the credentials"
            ) from None

    def _without_secrets(self, text: str) -> str:
        for value in _strings_in(self._storage_options):
            if len(value) >= 4 and not value.startswith(("http://", "https://")):
                for form in (value, unquote(value)):  # libraries show URLs decoded in part
                    text = text.replace(form, BLANKED)
        return redact_text(text)


class _PastTheEndError(Exception):
    """A range that starts after the object's last byte."""


def open_remote(uri: str, storage_options: dict[str, Any]) -> RemoteBackend:
    """The backend for a URL's scheme. Raises UnsupportedInputError for a scheme fsspec cannot open."""
    if urlsplit(uri).scheme in S3_SCHEMES:
        from logitstore.objects.s3 import S3Backend

        return S3Backend(uri, storage_options)
    if urlsplit(uri).scheme in HTTP_SCHEMES:
        from logitstore.objects.http import HttpBackend

        return HttpBackend(uri, storage_options)
    if urlsplit(uri).scheme == "hf":
        from logitstore.objects.hub import HubBackend

        return HubBackend(uri, storage_options)
    return RemoteBackend(uri, storage_options)


def _object_info(name: str, details: dict[str, Any]) -> ObjectInfo:
    """Details must have a size. Each library names the time of the last change in its own way."""
    names = ("LastModified", "last_modified", "mtime", "updated", "created")
    modified = next((value for key in names if (value := details.get(key))), 0.0)
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified)
    seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
    return ObjectInfo(name, int(details["size"]), seconds)


def error_code(error: BaseException | None) -> str:
    """The S3 code of a botocore error, or of the one that s3fs translated it from; else an HTTP status."""
    for candidate in (error, getattr(error, "__cause__", None)):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        status = getattr(candidate, "status", None) or getattr(response, "status_code", None)
        if isinstance(status, int):
            return str(status)
    return ""


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings_in(item)
