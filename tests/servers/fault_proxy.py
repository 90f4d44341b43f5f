"""A small HTTP proxy before a real S3 server that fails on purpose: 503, 500, cut connections, slowness.

It passes bytes through and looks only at where a request begins, so signatures stay valid (the server
accepts the Host it was signed for). Faults are counted, so that a test can tell that they happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CHUNK_BYTES = 16 * 1024
BUSY = b"HTTP/1.1 %d Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
BODY = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>on purpose</Message></Error>"


@dataclass
class Faults:
    """What is to go wrong; change it while the proxy runs."""

    error_status: int = 0
    """Answer with this status (503, 500) instead of asking the server; 0 is off."""
    errors_left: int = 0
    """So many times; -1 is for ever."""
    cuts_left: int = 0
    """Cut so many connections after `cut_after_bytes` of an upload."""
    cut_after_bytes: int = 2_000
    latency_sec: float = 0.0
    """Wait before each chunk of a request."""
    counts: dict[str, int] = field(default_factory=lambda: {"requests": 0, "errors": 0, "cuts": 0})


class _Proxy:
    def __init__(self, upstream: str, faults: Faults) -> None:
        parts = urlsplit(upstream)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._faults = faults

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one_request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass  # Either side went away, which is what this proxy is for.
        finally:
            writer.close()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Forward one request and its answer on a connection of its own to the server."""
        head = await reader.readuntil(b"\r\n\r\n")
        faults = self._faults
        faults.counts["requests"] += 1
        if faults.errors_left:
            if faults.errors_left > 0:
                faults.errors_left -= 1
            faults.counts["errors"] += 1
            code = b"SlowDown" if faults.error_status == 503 else b"InternalError"
            body = BODY % code
            writer.write(BUSY % (faults.error_status, len(body)) + body)
            await writer.drain()
            return False
        length = _content_length(head)
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        try:
            # The answer's end is told by the server closing the connection.
            up_writer.write(_without_keep_alive(head))
            if b"100-continue" in head.lower():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not await self._forward_body(reader, up_writer, length):
                return False
            while chunk := await up_reader.read(CHUNK_BYTES):
                writer.write(chunk)
                await writer.drain()
        finally:
            up_writer.close()
        return False

    async def _forward_body(
        self, reader: asyncio.StreamReader, up_writer: asyncio.StreamWriter, length: int
    ) -> bool:
        faults, sent = self._faults, 0
        while sent < length:
            if faults.latency_sec:
                await asyncio.sleep(faults.latency_sec)
            chunk = await reader.read(min(CHUNK_BYTES, length - sent))
            if not chunk:
                return False
            sent += len(chunk)
            if faults.cuts_left and length > faults.cut_after_bytes:
                faults.cuts_left -= 1
                faults.counts["cuts"] += 1
                up_writer.write(chunk[: faults.cut_after_bytes])
                await up_writer.drain()
                return False
            up_writer.write(chunk)
            await up_writer.drain()
        return True


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


def _without_keep_alive(head: bytes) -> bytes:
    lines = [
        line
        for line in head.split(b"\r\n")
        if line and not line.lower().startswith((b"connection:", b"expect:"))
    ]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


@contextmanager
def fault_proxy(upstream: str, faults: Faults) -> Iterator[str]:
    """URL of a proxy before `upstream`, on loopback, in a thread of its own."""
    loop = asyncio.new_event_loop()
    proxy = _Proxy(upstream, faults)
    server = loop.run_until_complete(asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=2**20))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, name="fault-proxy", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(server.close)  # of the loop's thread alone: a connection may end meanwhile
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        with contextlib.suppress(RuntimeError):
            loop.close()
