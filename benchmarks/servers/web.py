"""A web server on loopback that lists, ranges, tells sizes and asks for a signature, or does not."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from benchmarks.servers.serving import serving


@dataclass(frozen=True)
class WebHabits:
    lists: bool = True
    ranges: bool = True
    sizes: bool = True
    """False: neither HEAD nor a reply names a length; the body is sent in chunks."""
    signature: str = ""
    """What the query must be."""
    unlisted_status: int = 403
    failures: int = 0
    """The first so many requests are answered by 503."""


class WebServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: Path, habits: WebHabits) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.habits = root, habits
        self.failures_left = habits.failures
        self.sent_bytes = 0
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def run_web_server(root: Path, habits: WebHabits | None = None) -> Iterator[WebServer]:
    with serving(WebServer(root, habits or WebHabits())) as server:
        yield server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms until the client has confirmed its headers
    server: WebServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        habits, url = self.server.habits, urlsplit(self.path)
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.failures_left:
            self.server.failures_left -= 1
            self._reply(503)
            return
        if habits.signature and url.query != habits.signature:
            self._reply(403)
            return
        path = self.server.root / unquote(url.path).lstrip("/")
        if path.is_dir():
            names = "".join(f'<a href="{one.name}{"/" * one.is_dir()}">x</a>' for one in path.iterdir())
            listing = f'<a href="../">up</a><a href="?C=M;O=A">by time</a>{names}'.encode()
            self._reply(200, listing) if habits.lists else self._reply(habits.unlisted_status)
            return
        if not path.is_file():
            self._reply(404)
            return
        data = path.read_bytes()
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "") if habits.ranges else None
        if wanted is None:
            self._reply(200, data)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            self._reply(416)
            return
        self._reply(206, data[first : last + 1], f"bytes {first}-{last}/{len(data)}")

    do_HEAD = do_GET

    def _reply(self, status: int, data: bytes = b"", content_range: str = "") -> None:
        self.send_response(status)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header(
            "Content-Type", "text/html" if data.startswith(b"<a") else "application/octet-stream"
        )
        chunked = not self.server.habits.sizes and bool(data)
        self.send_header(
            *(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(data))))
        )
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.sent_bytes += len(data)
        with contextlib.suppress(OSError):  # a client that has seen enough closes the connection
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data) if chunked else data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
