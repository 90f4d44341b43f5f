"""A small S3 in memory that behaves as some servers do which are not Amazon's."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from benchmarks.servers.serving import serving

Dialect = Literal[
    "plain",
    "wants Content-MD5",
    "no DeleteObjects",
    "ignores If-None-Match",
    "ignores If-Match",
    "no deletes",
    "no conditional writes",
    "no lists",
]
NAMESPACE = "xmlns='http://s3.amazonaws.com/doc/2006-03-01/'"


class DialectServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dialect = dialect
        self.data: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.requests: list[str] = []

    @property
    def storage_options(self) -> dict[str, Any]:
        return {
            "key": "key",
            "secret": "secret",
            "client_kwargs": {
                "endpoint_url": f"http://127.0.0.1:{self.server_port}",
                "region_name": "us-east-1",
            },
        }


@contextlib.contextmanager
def run_dialect(dialect: Dialect) -> Iterator[DialectServer]:
    with serving(DialectServer(dialect)) as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms until the client has confirmed its headers
    server: DialectServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_PUT(self) -> None:
        key, data, dialect = self._key(), self._body(), self.server.dialect
        absent, match = self.headers.get("If-None-Match"), self.headers.get("If-Match")
        if (absent or match) and dialect == "no conditional writes":
            self._fail(501, "NotImplemented")
            return
        with self.server.lock:
            found = self.server.data.get(key)
            if absent and found is not None and dialect != "ignores If-None-Match":
                self._fail(412, "PreconditionFailed")
                return
            if match and (found is None or _etag(found) != match) and dialect != "ignores If-Match":
                self._fail(412, "PreconditionFailed")
                return
            self.server.data[key] = data
        self._reply(200, headers={"ETag": _etag(data)})

    def do_GET(self) -> None:
        key, refuses = self._key(), self.server.dialect == "no lists"
        if not key and not refuses:
            self._list()
            return
        data = self.server.data.get(key)
        if data is None:  # a key that may not list is told nothing of what is not there
            self._fail(403 if refuses else 404, "AccessDenied" if refuses else "NoSuchKey")
            return
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            self._reply(200, data, {"ETag": _etag(data)})
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            self._fail(416, "InvalidRange")
            return
        headers = {"ETag": _etag(data), "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._reply(206, data[first : last + 1], headers)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body, dialect = self._body(), self.server.dialect
        if dialect in ("no DeleteObjects", "no deletes"):
            self._fail(501, "NotImplemented")
            return
        if dialect == "wants Content-MD5" and not self.headers.get("Content-MD5"):
            self._fail(400, "MissingContentMD5")
            return
        for key in re.findall(rb"<Key>([^<]+)</Key>", body):
            self.server.data.pop(key.decode(), None)
        self._reply(200, f"<?xml version='1.0'?><DeleteResult {NAMESPACE}></DeleteResult>".encode())

    def do_DELETE(self) -> None:
        if self.server.dialect == "no deletes":
            self._fail(403, "AccessDenied")
            return
        self.server.data.pop(self._key(), None)
        self._reply(204)

    def _list(self) -> None:
        prefix = parse_qs(urlsplit(self.path).query, keep_blank_values=True).get("prefix", [""])[0]
        items = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-11-01T00:00:00.000Z</LastModified>"
            f"<Size>{len(data)}</Size></Contents>"
            for key, data in sorted(self.server.data.items())
            if key.startswith(prefix)
        )
        self._reply(
            200,
            f"<?xml version='1.0'?><ListBucketResult {NAMESPACE}><Name>b</Name><Prefix>{prefix}</Prefix>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode(),
        )

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def _body(self) -> bytes:
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        return data

    def _fail(self, status: int, code: str) -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._reply(status, body.encode(), {"Content-Type": "application/xml"})

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        self.server.requests.append(self.command)


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
