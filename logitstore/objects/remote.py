"""Objects behind fsspec: S3 through s3fs, and other object stores that can create exclusively."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import sync

from logitstore.common.secrets import BLANKED, redact_text
from logitstore.errors import ObjectNotFoundError, ObjectStoreError
from logitstore.objects.opening import MAX_TAGGED_BYTES, ObjectInfo

S3_SCHEMES = ("s3", "s3a")
EXCLUSIVE_CREATE_SCHEMES = ("memory", "gs", "gcs")
"""Schemes other than S3 whose fsspec `mode="create"` is one atomic step of the server."""

MAX_SMALL_READS_AT_ONCE = 256
S3FS_ATTEMPTS = 2
"""s3fs repeats a whole call, botocore each request inside it: the two multiply, so both are bounded."""
BOTOCORE_CONFIG = {
    "retries": {"max_attempts": 4, "mode": "standard"},
    "connect_timeout": 10,
    "read_timeout": 60,
}
NO_BATCH_CODES = ("MissingContentMD5", "NotImplemented", "MethodNotAllowed", "501", "405")
"""How servers say that they do not take DeleteObjects as it is sent."""
CONFLICT_ATTEMPTS = 5
"""Tries of a conditional PUT that S3 answers with 409: another one on the same key is in flight."""


class RemoteBackend:
    """The `Backend` of an fsspec file system; S3 gets its conditional requests in `S3Backend`."""

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
            self._fs.pipe_file(self._path(name), data)

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
            return _object_info(name, self._fs.info(self._path(name)))

    def list(self, prefix: str) -> list[ObjectInfo]:
        root = self._path(prefix.removesuffix("/")) if prefix else self._root
        with self._translated(prefix):
            found = self._fs.find(root, detail=True)
        skip = len(self._root) + 1
        assert isinstance(found, dict)
        # Some servers keep an emptied folder as an entry of its own.
        return [
            _object_info(path[skip:], details)
            for path, details in found.items()
            if details.get("type") == "file" and path.startswith(self._path(prefix)) and path[-1] != "/"
        ]

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

    def _connect(self) -> Any:
        return fsspec.filesystem(self._scheme, **self._storage_options)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _found_or_none(self, name: str, found: bytes | Exception) -> bytes | None:
        if isinstance(found, FileNotFoundError):
            return None
        if isinstance(found, Exception):
            with self._translated(name):
                raise found
        return found

    def _unsupported(self, what: str) -> ObjectStoreError:
        return ObjectStoreError(
            f"{self._uri}: {self._scheme}:// cannot {what} in one step, which writing a store needs; "
            "write to a local directory or to S3 (reading works from anywhere)"
        )

    @contextlib.contextmanager
    def _translated(self, name: str, *, writing: bool = False) -> Iterator[None]:
        """Errors of fsspec, botocore and aiohttp as ours, in few words and without credentials."""
        where = f"{self._uri}/{name}" if name else self._uri
        try:
            yield
        except (ObjectStoreError, ObjectNotFoundError, FileExistsError, _PastTheEndError):
            raise
        except FileNotFoundError:
            remedy = "check that the bucket exists" if writing else "check the URL"
            raise ObjectNotFoundError(f"{where} does not exist; {remedy}") from None
        except Exception as error:  # noqa: BLE001
            # Every library below has its own root class; all of them mean that the request failed.
            if _error_code(error) in ("InvalidRange", "416"):
                raise _PastTheEndError from None
            raise ObjectStoreError(
                f"{where}: the request failed after bounded retries "
                f"({type(error).__name__}: {self._without_secrets(str(error)):.300}); "
                "check the endpoint, the network and the credentials"
            ) from None

    def _without_secrets(self, text: str) -> str:
        for value in _strings_in(self._storage_options):
            if len(value) >= 4 and not value.startswith(("http://", "https://")):
                text = text.replace(value, BLANKED)
        return redact_text(text)


class S3Backend(RemoteBackend):
    """S3 and what speaks its protocol, with If-None-Match and If-Match on single PUTs."""

    _deletes_batches = True

    def get_with_etag(self, name: str) -> tuple[bytes, str]:
        bucket, key, _ = self._fs.split_path(self._path(name))

        async def fetch() -> tuple[bytes, str]:
            reply = await self._fs._call_s3("get_object", Bucket=bucket, Key=key)  # noqa: SLF001
            data = bytearray()
            async with reply["Body"] as body:
                while len(data) <= MAX_TAGGED_BYTES and (part := await body.read(MAX_TAGGED_BYTES + 1)):
                    data += part
            return bytes(data[: MAX_TAGGED_BYTES + 1]), reply["ETag"]

        with self._translated(name):
            found: Any = sync(self._fs.loop, fetch)
            return found

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self._put_conditionally(name, data, "IfNoneMatch", "*")

    def put_if_match(self, name: str, data: bytes, etag: str) -> bool:
        return self._put_conditionally(name, data, "IfMatch", etag)

    def delete(self, names: list[str]) -> None:
        if not names:
            return
        with self._translated(names[0], writing=True):
            bucket, _, _ = self._fs.split_path(self._root)
            sync(self._fs.loop, self._delete_all, bucket, [self._path(name) for name in names])

    async def _delete_all(self, bucket: str, paths: list[str]) -> None:
        """DeleteObjects in batches of S3's limit. Unlike `rm`, absent keys are no error."""
        for first in range(0, len(paths), 1000):
            keys = [path.removeprefix(f"{bucket}/") for path in paths[first : first + 1000]]
            await self._delete_batch(bucket, keys)

    async def _delete_batch(self, bucket: str, keys: list[str]) -> None:
        """One by one for servers that want a Content-MD5, which is sent no more, or know no DeleteObjects."""
        call = self._fs._call_s3  # noqa: SLF001
        if self._deletes_batches:
            objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
            try:
                reply = await call("delete_objects", Bucket=bucket, Delete=objects)
            except Exception as error:
                if _error_code(error) not in NO_BATCH_CODES:
                    raise
                self._deletes_batches = False
            else:
                if errors := reply.get("Errors"):
                    key, code = errors[0].get("Key"), errors[0].get("Code")
                    raise OSError(f"{len(errors)} objects were not deleted, such as {key}: {code}")
                return
        for key in keys:
            await call("delete_object", Bucket=bucket, Key=key)

    def _connect(self) -> Any:
        options = {"use_listings_cache": False, "skip_instance_cache": True, **self._storage_options}
        options["config_kwargs"] = {**BOTOCORE_CONFIG, **(options.get("config_kwargs") or {})}
        file_system = fsspec.filesystem("s3", **options)
        file_system.retries = S3FS_ATTEMPTS
        return file_system

    def _put_conditionally(self, name: str, data: bytes, condition: str, value: str) -> bool:
        bucket, key, _ = self._fs.split_path(self._path(name))
        for attempt in range(CONFLICT_ATTEMPTS):
            with self._translated(name, writing=True):
                try:
                    self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **{condition: value})
                except Exception as error:
                    code = _error_code(error)
                    if code in ("PreconditionFailed", "412"):
                        return False
                    if condition == "IfMatch" and code in ("NoSuchKey", "404"):
                        return False
                    if code != "ConditionalRequestConflict" or attempt + 1 == CONFLICT_ATTEMPTS:
                        raise
                else:
                    return True
        raise AssertionError("the last attempt returns or raises")


class RangedFile(io.RawIOBase):
    """A remote object as a seekable raw file; every read is one ranged request."""

    def __init__(self, backend: RemoteBackend, name: str, num_bytes: int) -> None:
        super().__init__()
        self._backend, self._name, self._num_bytes = backend, name, num_bytes
        self._position = 0

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
        data = self._backend.get_range(self._name, self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _PastTheEndError(Exception):
    """A range that starts after the object's last byte."""


def open_remote(uri: str, storage_options: dict[str, Any]) -> RemoteBackend:
    """The backend for a URL's scheme. Raises ObjectStoreError for a scheme fsspec cannot open."""
    if urlsplit(uri).scheme in S3_SCHEMES:
        return S3Backend(uri, storage_options)
    return RemoteBackend(uri, storage_options)


def _object_info(name: str, details: dict[str, Any]) -> ObjectInfo:
    modified = details.get("LastModified") or details.get("created") or details.get("mtime") or 0.0
    seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
    return ObjectInfo(name, int(details.get("size") or 0), seconds)


def _error_code(error: BaseException | None) -> str:
    """The S3 error code of a botocore error, or of the one that s3fs translated it from."""
    for candidate in (error, getattr(error, "__cause__", None)):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings_in(item)
