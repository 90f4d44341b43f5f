"""A job's log that is followed over real WebSockets, whole, cut, silent and given up."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator

import pytest
from aiohttp import web

from cluster.jobs import client as client_module
from cluster.jobs.client import ClusterClient
from cluster.jobs.network.address import find_way

VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}


class Head:
    """A dashboard with one job, which ends once it was asked for `num_asked_at_end` times.

    Its log has one more line each time that the job, and once more after the log, was asked for.
    """

    def __init__(self) -> None:
        self.num_asked_at_end = 1
        self.num_lines_before_cut: int | None = None
        """After so many lines of the log a connection is cut; None leaves it silent."""
        self.written: list[str] = []
        self.written_at_end = ""
        """What the user had before the job's end was said."""
        self.is_interrupted = False
        """Whether the user presses Ctrl-C while the job is asked for."""
        self.num_asked = self.num_tails = self.num_lines = 0
        self.log_at_end = ""
        self.stop = asyncio.Event()

    @property
    def log(self) -> str:
        return "".join(f"line {number}\n" for number in range(self.num_lines))

    async def version(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(VERSION)

    async def jobs(self, _: web.Request) -> web.StreamResponse:
        self.num_asked += 1
        self.num_lines += 1
        if self.is_interrupted:
            await asyncio.sleep(0.05)  # who asks waits for the answer by then
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            await self.stop.wait()
        has_ended = self.num_asked >= self.num_asked_at_end
        if has_ended:
            self.written_at_end = "".join(self.written)
        job = {
            "type": "SUBMISSION", "submission_id": "label-1", "entrypoint": "x", "message": "", "start_time": 1,
            "status": "SUCCEEDED" if has_ended else "RUNNING", "metadata": {"penumbra.store": "s3://b/s"},
        }  # fmt: skip
        return web.json_response([job])

    async def logs(self, _: web.Request) -> web.StreamResponse:
        self.log_at_end = self.log
        self.num_lines += 1
        return web.json_response({"logs": self.log_at_end})

    async def tail(self, request: web.Request) -> web.StreamResponse:
        self.num_tails += 1
        connection = web.WebSocketResponse()
        await connection.prepare(request)
        for number, line in enumerate(self.log.splitlines(keepends=True)):
            if number == self.num_lines_before_cut and request.transport is not None:
                request.transport.abort()
            with contextlib.suppress(ConnectionError):
                await connection.send_str(line)
        await self.stop.wait()
        return connection


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Head, ClusterClient]]:
    monkeypatch.setattr(client_module, "POLL_SEC", 0.0)
    monkeypatch.setattr(client_module, "QUIET_SEC", 0.1)
    head, loop, serves = Head(), asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/api/version", head.version)
        app.router.add_get("/api/jobs/", head.jobs)
        app.router.add_get("/api/jobs/label-1/logs", head.logs)
        app.router.add_get("/api/jobs/label-1/logs/tail", head.tail)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        serves.set()
        await head.stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert serves.wait(60)
    try:
        yield head, ClusterClient(find_way(f"http://127.0.0.1:{ports[0]}", environ={}))
    finally:
        loop.call_soon_threadsafe(head.stop.set)
        thread.join()
        loop.close()


@pytest.mark.parametrize("num_lines_before_cut", [None, 0, 1, 2])
def test_a_log_whose_connection_is_lost_goes_on_before_the_job_ends(
    followed: tuple[Head, ClusterClient], num_lines_before_cut: int | None
) -> None:
    head, client = followed
    head.num_asked_at_end, head.num_lines_before_cut = 4, num_lines_before_cut
    assert client.follow("label-1", head.written.append).state == "SUCCEEDED"
    assert "".join(head.written) == head.log_at_end, "no line is lost or written twice"
    assert head.log_at_end.count("\n") == 7
    assert head.written_at_end.count("\n") >= 5
    assert head.num_tails > 1, "a connection that may be dead is not listened to again"


def test_ctrl_c_ends_it_at_once_though_the_cluster_does_not_answer(
    followed: tuple[Head, ClusterClient],
) -> None:
    head, client = followed
    head.is_interrupted = True
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell has it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            client.follow("label-1", head.written.append)
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert head.num_asked == 1, "it was not answered meanwhile"
    assert not head.stop.is_set()
