"""Objects of a web server: read by name, by range where the server has ranges, listed where it lists.

Nothing that a server leaves out is taken for a fact: a size that it does not tell is asked for, a range that
it ignores is cut from the whole, and only a 404 says that an object is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
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
from logitstore.objects.opening import MAX_UNBOUNDED_BYTES, ObjectInfo
from logitstore.objects.remote import RemoteBackend, error_code

Result = TypeVar("Result")
HTTP_ATTEMPTS = 4
FIRST_PAUSE_SEC = 0.2
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
        return self._file_system_of(options)

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
                time.sleep(FIRST_PAUSE_SEC * 2 ** (attempt - 1))

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
        """Bytes [start, end) of an object; None if it is not there."""
        async with self._reply("GET", url, start, end) as reply:
            if reply.status in (404, 410):
                return None
            if reply.status == 416:
                return b""
            skip = start
            if reply.status == 206:
                given = _CONTENT_RANGE.match(reply.headers.get("Content-Range", ""))
                if given is None or int(given[1]) != start:
                    raise ObjectStoreError(
                        f"{url}: asked for bytes from {start} the server says it sends "
                        f"{reply.headers.get('Content-Range')!r:.80}; something between here and there "
                        "answers for other requests: read from another address"
                    )
                skip = 0
            wanted = MAX_UNBOUNDED_BYTES + 1 if end is None else end - start
            data = bytearray()
            while len(data) < skip + wanted and (part := await reply.content.read(_PART_BYTES)):
                data += part
            if reply.status != 206 and (start or len(data) > skip + wanted or not reply.content.at_eof()):
                self.ignores_ranges = True
            return bytes(data[skip : skip + wanted])

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
        async with self._reply("HEAD", url) as reply:
            if reply.status in (404, 410):
                return None
            modified_sec = _seconds(reply.headers.get("Last-Modified"))
            if "Content-Length" in reply.headers and "Content-Encoding" not in reply.headers:
                return int(reply.headers["Content-Length"]), modified_sec
        async with self._reply("GET", url, 0, 1) as reply:
            if reply.status in (404, 410):
                return None
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


def _seconds(date: str | None) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() if date else 0.0
    except ValueError:
        return 0.0
