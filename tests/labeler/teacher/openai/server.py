"""The real vLLM server of the demo's teacher, and a proxy before it that fails on purpose."""

from __future__ import annotations

import atexit
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from benchmarks.servers.serving import serving
from tests.labeler import engines

SERVED = "demo"
START_LIMIT_SEC = 400
KEY = "the-key-of-the-test"
Fault = Literal["busy", "error", "cut", "slow", "nonsense", "other", "filtered", "gateway", "restart"]
REFUSED: dict[Fault | None, tuple[int, bytes]] = {
    "error": (503, b"<html>no server</html>"),
    "filtered": (400, b'{"error": {"message": "no", "code": "content_filter"}}'),
}
"""Without asking the server."""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@cache
def vllm_server() -> str:
    """Its address up to the version, started on first use, ended with the tests. Its vLLM is the labeler's."""
    port = _free_port()
    arguments = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(engines.MODEL)]
    arguments += ["--served-model-name", SERVED, "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--max-model-len", str(engines.MAX_MODEL_LEN), "--max-logprobs", "20", "--enforce-eager"]
    arguments += ["--kv-cache-memory-bytes", str(256 << 20), "--block-size", "32", "--dtype", "float32"]
    arguments += ["--no-enable-chunked-prefill", "--no-enable-prefix-caching"]
    environment = os.environ | {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_API_KEY": KEY,
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    atexit.register(process.wait, 30)
    atexit.register(process.terminate)
    deadline = time.monotonic() + START_LIMIT_SEC
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return f"http://127.0.0.1:{port}/v1"
        except OSError:
            pass
        assert process.poll() is None, "vLLM's server ended"
        assert time.monotonic() < deadline, "vLLM's server does not answer"
        time.sleep(0.5)


class FaultyProxy:
    """Passes requests on; each takes the next fault of the list, the rest none."""

    def __init__(self, upstream: str) -> None:
        self._host = upstream.split("/")[2]
        self.faults: deque[Fault] = deque()
        self.counts: Counter[str] = Counter()
        self.every: Iterator[Fault | None] = itertools.repeat(None)
        """What requests take once the list is empty."""
        self.billed: list[tuple[float, int, int]] = []
        """When each answer that arrived whole was sent off, and its tokens given and written."""
        self.slow_sec = 0.0
        self.fails_at: list[int] | None = None
        """A prompt at which the server fails whenever it is asked."""
        self.fails_with: Fault = "error"
        self._lock = threading.Lock()

    def next_fault(self, body: bytes) -> Fault | None:
        always = self.fails_at is not None and json.loads(body)["prompt"] == self.fails_at
        with self._lock:
            if always:
                self.counts["always"] += 1
                return self.fails_with
            fault = self.faults.popleft() if self.faults else next(self.every)
            self.counts[fault or "none"] += 1
            return fault

    def sends_whole(self, answer: bytes) -> None:
        usage = json.loads(answer).get("usage")
        if usage is not None:
            with self._lock:
                self.billed.append((time.time(), usage["prompt_tokens"], usage["completion_tokens"]))

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
            fault = proxy.next_fault(body)
            if fault in ("busy", "restart"):
                status = 429 if fault == "busy" else 503
                self._send(status, b'{"error": {"message": "slow down"}}', Retry_After="0.2")
                return
            if fault in REFUSED:
                self._send(*REFUSED[fault])
                return
            names = ("Authorization", "Content-Type")
            status, answer = proxy.ask(self.path, body, {name: self.headers[name] for name in names})
            if fault == "gateway":
                self._send(504, b"<html>gateway timeout</html>")
            elif fault == "cut":
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer[: len(answer) // 2])
                self.close_connection = True
            elif fault == "nonsense":
                self._send(200, b'{"choices": [{"index": 0, "text": ')
            elif fault == "other" and other:
                proxy.sends_whole(other[0])
                self._send(200, other[0])  # A duplicate of the answer to another request.
            else:
                if fault == "slow":
                    time.sleep(proxy.slow_sec)
                other.append(answer)
                proxy.sends_whole(answer)
                self._send(status, answer)

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield proxy, f"http://127.0.0.1:{server.server_port}/v1"
