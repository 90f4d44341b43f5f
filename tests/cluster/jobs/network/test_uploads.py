"""Files that are sent to a cluster over a slow way, and over one that stands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event
from typing import Any

import pytest

from benchmarks.servers.serving import serving
from cluster.errors import ClusterUnreachableError
from cluster.jobs.client import ClusterClient
from cluster.jobs.network import connection
from cluster.jobs.network.address import find_way
from cluster.jobs.network.answers import reached

VERSION = b'{"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}'
FILE = bytes(16 << 20)
"""More than the buffers of both sides hold."""
NUM_BLOCKS = 16


class Reader:
    """How the server takes what is sent: with `pause_sec` before each block, and only so many of them."""

    def __init__(self) -> None:
        self.pause_sec = 0.0
        self.num_blocks = NUM_BLOCKS
        self.num_bytes = 0
        self.stays = Event()


@pytest.fixture
def reader() -> Iterator[tuple[Reader, ClusterClient]]:
    given = Reader()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(VERSION)

        def do_PUT(self) -> None:
            assert int(self.headers["Content-Length"]) == len(FILE), "a proxy may take no parts without one"
            for _ in range(given.num_blocks):
                time.sleep(given.pause_sec)
                given.num_bytes += len(self.rfile.read(len(FILE) // NUM_BLOCKS))
            if given.num_blocks < NUM_BLOCKS:
                given.stays.wait(60)
            self._answer(b"{}")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """No line on standard error for each request."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """The other side is gone: it was to leave."""

    with serving(Server(("127.0.0.1", 0), Handler)) as server:
        try:
            yield given, ClusterClient(find_way(f"http://127.0.0.1:{server.server_port}", environ={}))
        finally:
            given.stays.set()


def send(client: ClusterClient) -> int:
    with reached(client.address):
        return client._client._do_request("PUT", "/api/packages/gcs/x.zip", data=FILE).status_code


def test_a_slow_way_takes_a_file_of_any_size(
    reader: tuple[Reader, ClusterClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, client = reader
    monkeypatch.setattr(connection, "QUICK_SEC", 0.1)
    given.pause_sec = 0.02
    assert send(client) == 200
    assert given.num_bytes == len(FILE)


def test_a_way_that_stands_is_left(
    reader: tuple[Reader, ClusterClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, client = reader
    monkeypatch.setattr(connection, "ANSWER_SEC", 0.1)
    given.num_blocks = 1
    with pytest.raises(ClusterUnreachableError, match="stopped answering"):
        send(client)
    assert given.num_bytes <= len(FILE) // NUM_BLOCKS
