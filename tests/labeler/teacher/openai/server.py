"""A proxy before an OpenAI-compatible server that fails on purpose."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

SERVED = "demo"
KEY = "the-key-of-the-test"
Fault = Literal["busy", "error", "cut", "slow", "nonsense", "other", "filtered"]


class FaultyProxy:
    """Passes requests on; each takes the next fault of the list, the rest none."""

    def __init__(self, upstream: str) -> None:
        self._host = upstream.split("/")[2]
        self.faults: deque[Fault] = deque()
        self.counts: Counter[str] = Counter()
        self.slow_sec = 0.0
        self._lock = threading.Lock()

    def next_fault(self) -> Fault | None:
        with self._lock:
            fault = self.faults.popleft() if self.faults else None
            self.counts[fault or "none"] += 1
            return fault

    def ask(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, timeout=120)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[tuple[FaultyProxy, str]]:
    """The proxy and its address."""
    proxy = FaultyProxy(upstream)
    other: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def _send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fault = proxy.next_fault()
            if fault == "busy":
                self._send(429, b'{"error": {"message": "slow down"}}', Retry_After="0.2")
                return
            if fault == "error":
                self._send(503, b"<html>bad gateway</html>")
                return
            if fault == "filtered":
                self._send(400, b'{"error": {"message": "no", "code": "content_filter"}}')
                return
            names = ("Authorization", "Content-Type")
            status, answer = proxy.ask(self.path, body, {name: self.headers[name] for name in names})
            if fault == "cut":
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer[: len(answer) // 2])
                self.close_connection = True
            elif fault == "nonsense":
                self._send(200, b'{"choices": [{"index": 0, "text": ')
            elif fault == "other" and other:
                self._send(200, other[0])  # A duplicate of the answer to another request.
            else:
                if fault == "slow":
                    time.sleep(proxy.slow_sec)
                other.append(answer)
                self._send(status, answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
