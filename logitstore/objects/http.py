"""Objects of a web server: read by name, by range where the server has ranges, listed where it lists.

Nothing that a server leaves out is taken for a fact: a size that it does not tell is asked for, a range that
it ignores is cut from the whole, and only a 404 says that an object is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, TypeVar, cast

from fsspec.asyn import sync

from logitstore.errors import (
    AccessRefusedError,
    ObjectNotFoundError,
    ObjectStoreError,
    UnsuitablePlaceError,
)
from logitstore.objects.file_systems import no_file_system
from logitstore.objects.opening import MAX_UNBOUNDED_BYTES, ObjectInfo
from logitstore.objects.remote import RemoteBackend, error_code

Result = TypeVar("Result")
HTTP_ATTEMPTS = 6
FIRST_PAUSE_SEC = 0.2
LONGEST_PAUSE_SEC = 60.0
"""Most that is waited before a request is repeated, also where a server asks for more by `Retry-After`."""
CONNECT_SEC, SILENCE_SEC = 30.0, 60.0
"""How long a server may take to connect, and to send nothing: a large object may take any time."""
READS_AT_ONCE = 32
RETRIED_STATUSES = (429, 500, 502, 503, 504)
TAKES_NO_PUT = ("404", "405", "409", "501")
"""What servers answer to a method that they do not have, or, of WebDAV, where a folder is missing; to a PUT,
404 is no word on the object."""
_PART_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class HttpBackend(RemoteBackend):
    """`query` of the storage options is added to every object's address: a signature of a CDN, say."""

    def get_range(self, name: str, start: int, end: int | None) -> bytes:
        if end == 0:
            return b""
        with self._translated(name):
            data = self._retried(lambda: self._fetch(self._path(name), start, end))
        if data is None:
            with self._translated(name):
                raise FileNotFoundError(name)
        return data

    def put(self, name: str, data: bytes) -> None:
        with self._translated(name, writing=True):
            try:
                self._fs.pipe_file(self._path(name), data)
            except Exception as error:
                status = "404" if isinstance(error, FileNotFoundError) else error_code(error)
                if status in TAKES_NO_PUT:
                    raise self._read_only(status) from None
                raise

    def get_many(self, names: list[str], max_bytes: int) -> list[bytes | None]:
        with self._translated(names[0] if names else ""):
            return self._retried(lambda: self._fetch_all([self._path(name) for name in names], max_bytes + 1))

    def stat(self, name: str) -> ObjectInfo:
        with self._translated(name):
            found = self._retried(lambda: self._measure(self._path(name)))
            if found is None:
                raise FileNotFoundError(name)
        return ObjectInfo(name, *found)

    def list(self, prefix: str) -> list[ObjectInfo]:
        # Pages of listings have links that sort them, "?C=M;O=A".
        found = [info for info in super().list(prefix) if "?" not in info.name and "#" not in info.name]
        # Some, such as Caddy, link to "./name".
        found = [replace(info, name=re.sub(r"(^|/)(\./)+", r"\1", info.name)) for info in found]
        if not found and not self._shows_folders:
            raise AccessRefusedError(
                f"{self._uri}: the server shows no listing of its folders, so nothing tells what lies in "
                f"{prefix or 'it'}; use a folder of this machine, or a server that lists"
            )
        return found

    @cached_property
    def _shows_folders(self) -> bool:
        """Whether the place itself is listed: 404 for a folder within it else says nothing of the folder."""
        with contextlib.suppress(ObjectNotFoundError), self._translated(""):
            listed = self._fs.ls(f"{self._root}/", detail=False)
            return any(name.startswith(f"{self._root}/") for name in listed)
        return False

    def _read_only(self, status: str) -> UnsuitablePlaceError:
        return UnsuitablePlaceError(
            f"{self._uri}: the server takes no PUT requests here (status {status}), it is for reading alone; "
            "write to the folder that it serves, or by s3://, sftp:// or webdav:// to the same place"
        )

    def _connect(self) -> Any:
        self._query = str(self._storage_options.get("query", "")).lstrip("?")
        options = {key: value for key, value in self._storage_options.items() if key != "query"}
        try:
            from aiohttp import ClientTimeout
        except ImportError as error:
            raise no_file_system(self._uri, self._scheme, error) from None
        patience = ClientTimeout(total=None, sock_connect=CONNECT_SEC, sock_read=SILENCE_SEC)
        client = {"timeout": patience, **(options.get("client_kwargs") or {})}
        if headers := [*(options.get("headers") or {}), *(client.get("headers") or {})]:
            client["middlewares"] = (_HeadersAtHome(self._uri, headers),)
        return self._file_system_of({**options, "client_kwargs": client})

    def _retried(self, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of a request that is repeated after failures which pass."""
        from aiohttp import ClientError, ClientResponseError

        attempt = 0
        while True:
            attempt += 1
            try:
                return cast(Result, sync(self._fs.loop, make))
            except (ClientError, TimeoutError) as error:
                lasting = isinstance(error, ClientResponseError) and error.status not in RETRIED_STATUSES
                if lasting or attempt == HTTP_ATTEMPTS:
                    raise
                asked_sec = _seconds_asked(getattr(error, "headers", None))
                time.sleep(min(max(FIRST_PAUSE_SEC * 2 ** (attempt - 1), asked_sec), LONGEST_PAUSE_SEC))

    @asynccontextmanager
    async def _reply(
        self, method: str, url: str, start: int = 0, end: int | None = None
    ) -> AsyncIterator[Any]:
        """A reply that is no failure but 404 and 416, which its user looks at."""
        session = await self._fs.set_session()
        options = dict(self._fs.kwargs)
        headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        options.setdefault("allow_redirects", True)
        address = self._fs.encode_url(f"{url}?{self._query}" if self._query else url)
        async with session.request(method, address, headers=headers, **options) as reply:
            if reply.status not in (404, 410, 416):
                reply.raise_for_status()
            yield reply

    async def _fetch(self, url: str, start: int, end: int | None) -> bytes | None:
        """Bytes [start, end) of an object; None if it is not there.

        Where a server sends less than it was asked for, the rest is asked for.
        """
        data = bytearray()
        while True:
            found = await self._fetch_part(url, start + len(data), end)
            if found is None:
                return None
            part, ends = found
            data += part
            if ends or (end is None and len(data) > MAX_UNBOUNDED_BYTES):
                return bytes(data)
            if not part:
                raise ObjectStoreError(
                    f"{url}: the server ends a reply before byte {start + len(data):,}, though it says that "
                    "the object goes on; read from another address"
                )

    async def _fetch_part(self, url: str, start: int, end: int | None) -> tuple[bytes, bool] | None:
        """What one reply has of bytes [start, end), and whether no more of them are to be had."""
        async with self._reply("GET", url, start, end) as reply:
            if reply.status in (404, 410):
                return None
            if reply.status == 416:
                return b"", True
            skip, total = start, 0
            if reply.status == 206:
                skip, total = 0, _total_of(url, reply.headers, start)
            wanted = MAX_UNBOUNDED_BYTES + 1 if end is None else end - start
            data = bytearray()
            while len(data) < skip + wanted and (part := await reply.content.read(_PART_BYTES)):
                data += part
            if reply.status != 206 and (start or len(data) > skip + wanted or not reply.content.at_eof()):
                self.ignores_ranges = True
            part = bytes(data[skip : skip + wanted])
            return part, len(part) == wanted or start + len(part) >= total

    async def _fetch_all(self, urls: list[str], max_bytes: int) -> list[bytes | None]:
        turns = asyncio.Semaphore(READS_AT_ONCE)

        async def fetch(url: str) -> bytes | None:
            async with turns:
                return await self._fetch(url, 0, max_bytes)

        return list(await asyncio.gather(*map(fetch, urls)))

    async def _measure(self, url: str) -> tuple[int, float] | None:
        """Size and time of the last change, which is 0 where the server does not tell it; None if not there.

        Servers that tell no size to HEAD tell it with a range, and those without ranges by what they send.
        """
        from aiohttp import ClientResponseError

        try:
            async with self._reply("HEAD", url) as reply:
                if reply.status in (404, 410):
                    return None
                num_bytes = int(reply.headers.get("Content-Length", 0))
                if num_bytes and "Content-Encoding" not in reply.headers:
                    return num_bytes, _seconds(reply.headers.get("Last-Modified"))
        except ClientResponseError as error:  # servers and signatures there are that permit GET alone
            if error.status in RETRIED_STATUSES:
                raise
        async with self._reply("GET", url, 0, 1) as reply:
            if reply.status in (404, 410):
                return None
            modified_sec = _seconds(reply.headers.get("Last-Modified"))
            if reply.status == 416:
                return 0, modified_sec
            total = _CONTENT_RANGE.match(reply.headers.get("Content-Range", ""))
            if reply.status == 206 and total is not None and total[2] != "*":
                return int(total[2]), modified_sec
        async with self._reply("GET", url) as reply:
            num_bytes = 0
            while part := await reply.content.read(_PART_BYTES):
                num_bytes += len(part)
            return num_bytes, modified_sec


class _HeadersAtHome:
    """The user's own headers go to the store's server alone, and to none that it redirects to. (Authorization
    and cookies are kept back by aiohttp.)"""

    def __init__(self, uri: str, names: Iterable[str]) -> None:
        self._uri, self._names = uri, tuple(names)

    async def __call__(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        if request.url.origin() != type(request.url)(self._uri).origin():
            for name in self._names:
                request.headers.popall(name, None)
        return await handler(request)


def _total_of(url: str, headers: Mapping[str, str], start: int) -> int:
    """Bytes of the whole object, by a reply that has a part from `start` on; 0 if it does not say.

    Raises ObjectStoreError for a reply that is no such part.
    """
    found = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start:
        raise ObjectStoreError(
            f"{url}: asked for bytes from {start} the server says it sends "
            f"{headers.get('Content-Range')!r:.80}; something between here and there answers for other "
            "requests: read from another address"
        )
    if (coding := headers.get("Content-Encoding", "identity")) != "identity":
        raise ObjectStoreError(
            f"{url}: the server sends parts of a compressed form (Content-Encoding: {coding:.40}), which are "
            "not those of the object; switch that off there, or read from another address"
        )
    return 0 if found[2] == "*" else int(found[2])


def _seconds_asked(headers: Mapping[str, str] | None) -> float:
    """What `Retry-After` asks for, as seconds or as a date; 0 where there is none."""
    value = (headers or {}).get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    date_sec = _seconds(value)
    return max(0.0, date_sec - time.time()) if date_sec else 0.0


def _seconds(date: str | None) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() if date else 0.0
    except ValueError:
        return 0.0
