"""A web server on loopback with one habit that servers, proxies or CDNs have and clients stumble over."""

from __future__ import annotations

import contextlib
import gzip
import re
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from benchmarks.servers.serving import serving

OddHabit = Literal[
    "takes GET alone",
    "tells HEAD that all is empty",
    "sends 1,000 bytes of a range",
    "cuts the body of a range",
    "compresses whole objects",
    "compresses ranges",
    "sends the range before",
    "is busy at first",
    "links to ./name",
    "redirects",
]
SHORT_BYTES = 1_000


class OddServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: Path, habit: OddHabit | None, elsewhere: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.elsewhere = root, elsewhere
        self.habit: OddHabit | None = habit
        self.headers_seen: list[Mapping[str, str]] = []
        self.is_busy = habit == "is busy at first"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def run_odd_server(root: Path, habit: OddHabit | None, elsewhere: str = "") -> Iterator[OddServer]:
    """`elsewhere` is the server that one which "redirects" sends its clients to."""
    with serving(OddServer(root, habit, elsewhere)) as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: OddServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        if self.server.habit == "takes GET alone":
            self._reply(405)
        elif self.server.habit == "tells HEAD that all is empty":
            self._reply(200)
        else:
            self.do_GET()

    def do_GET(self) -> None:
        habit: OddHabit | None = self.server.habit
        path = self.server.root / urlsplit(self.path).path.lstrip("/")
        self.server.headers_seen.append(dict(self.headers.items()))
        if habit == "redirects":
            self._reply(302, headers={"Location": self.server.elsewhere + self.path})
        elif self.server.is_busy:
            self.server.is_busy = False
            self._reply(429, headers={"Retry-After": "3"})
        elif path.is_dir():
            dot = "./" if habit == "links to ./name" else ""
            names = "".join(f'<a href="{dot}{one.name}{"/" * one.is_dir()}">x</a>' for one in path.iterdir())
            self._reply(200, f'<a href="..">up</a>{names}'.encode(), {"Content-Type": "text/html"})
        elif not path.is_file():
            self._reply(404)
        else:
            self._send(path.read_bytes(), habit)

    def _send(self, data: bytes, habit: OddHabit | None) -> None:
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            squeezes = habit == "compresses whole objects"
            coding = {"Content-Encoding": "gzip"} if squeezes else {}
            self._reply(200, gzip.compress(data) if squeezes else data, coding)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            self._reply(416)
            return
        if habit == "sends 1,000 bytes of a range":
            last = min(last, first + SHORT_BYTES - 1)
        if habit == "sends the range before" and first:
            first, last = first - 1, last - 1
        part = data[first : last + 1]
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        if habit == "cuts the body of a range":
            part = part[:SHORT_BYTES]
        if habit == "compresses ranges":
            part, headers = gzip.compress(part), {**headers, "Content-Encoding": "gzip"}
        self._reply(206, part, headers)

    def _reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that has seen enough closes the connection
            self.wfile.write(body if self.command != "HEAD" else b"")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
