"""Who waits for a job while its cluster, or a proxy before it, is in trouble for a moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.servers.serving import serving
from cluster.errors import ClusterError, ClusterTroubleError, ClusterUnreachableError
from cluster.jobs import client as client_module
from cluster.jobs.client import ClusterClient, ClusterJob
from cluster.jobs.network.address import find_way
from cluster.jobs.submission import Submission

Answer = tuple[int, str]
VERSION = json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})
TROUBLE = (503, "<html><title>503 Service Unavailable</title></html>")


def one_job(status: str) -> Answer:
    job = {
        "type": "SUBMISSION", "submission_id": "label-1", "status": status, "entrypoint": "x",
        "metadata": {"penumbra.store": "s3://b/s"}, "start_time": 1, "message": "",
    }  # fmt: skip
    return 200, json.dumps([job])


class Server:
    """Gives Ray's version, each request for jobs the next of `jobs` (the last one again and again)."""

    def __init__(self) -> None:
        self.jobs: list[Answer] = []
        self.log: Answer = (200, json.dumps({"logs": "one\ntwo\n"}))
        self.posted: Answer = TROUBLE

    def answer(self, method: str, path: str) -> Answer:
        if path == "/api/version":
            return 200, VERSION
        if method == "POST":
            return self.posted
        if path.endswith("/logs"):
            return self.log
        return self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, ClusterClient]]:
    monkeypatch.setattr(client_module, "POLL_SEC", 0.0)
    given = Server()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = given.answer(self.command, self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: object) -> None:
            """No line on standard error for each request."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as http:
        yield given, ClusterClient(find_way(f"http://127.0.0.1:{http.server_port}", environ={}))


@pytest.mark.parametrize(
    "trouble", [TROUBLE, (429, "slow down"), (502, ""), (500, "Server got itself in trouble")]
)
def test_trouble_that_passes_is_waited_for(
    server: tuple[Server, ClusterClient], capsys: pytest.CaptureFixture[str], trouble: Answer
) -> None:
    given, client = server
    given.jobs = [one_job("RUNNING"), trouble, trouble, one_job("RUNNING"), one_job("SUCCEEDED")]
    seen: list[str] = []
    ended = client.wait("label-1", on_change=lambda job: seen.append(job.state))
    assert (ended.state, seen) == ("SUCCEEDED", ["RUNNING", "SUCCEEDED"])
    said = capsys.readouterr().err
    assert said.count("is in trouble (HTTP") == 1
    given.jobs = [one_job("RUNNING"), trouble, one_job("SUCCEEDED")]
    written: list[str] = []
    assert client.follow("label-1", written.append).state == "SUCCEEDED"
    assert "".join(written) == "one\ntwo\n"


def test_trouble_that_stays_ends_the_wait(
    server: tuple[Server, ClusterClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, client = server
    monkeypatch.setattr(client_module, "TROUBLE_PATIENCE_SEC", 0.0)
    given.jobs = [one_job("RUNNING"), TROUBLE]
    with pytest.raises(ClusterTroubleError, match=r"HTTP 503: 503 Service Unavailable\)"):
        client.wait("label-1", on_change=lambda job: None)


def test_a_job_that_was_taken_though_the_answer_was_lost_is_known_by_its_id(
    server: tuple[Server, ClusterClient],
) -> None:
    """Else a second one would be sent, or the user would not know what to follow."""
    given, client = server
    given.jobs = [one_job("PENDING")]
    assert client.submit(Submission("label-1", "true", {}, {})) == "label-1"
    with pytest.raises(ClusterTroubleError):
        client.submit(Submission("label-2", "true", {}, {}))


@pytest.mark.parametrize("body", ["[]", "null", "{}", '{"submission_id": "label-1"}', '{"a": 1}'])
def test_what_is_wrong_with_what_is_sent_is_no_fault_of_the_answer(
    server: tuple[Server, ClusterClient], body: str
) -> None:
    given, client = server
    given.jobs, given.posted = [one_job("PENDING")], (200, body)
    with pytest.raises(ClusterError, match="install the cluster's version of Ray here"):
        client.submit(Submission("label-2", "true", {}, {}))
    with pytest.raises(TypeError, match="pip"):
        client.submit(Submission("label-2", "true", {"pip": 3}, {}))


@pytest.mark.parametrize(
    ("last", "expected"), [(TROUBLE, ClusterUnreachableError), (one_job("SUCCEEDED"), None)]
)
def test_a_log_that_falls_silent_is_not_listened_to_for_ever(
    server: tuple[Server, ClusterClient],
    monkeypatch: pytest.MonkeyPatch,
    last: Answer,
    expected: type[Exception] | None,
) -> None:
    """As where a network is cut and no side is told."""
    given, client = server

    async def silent(submission_id: str) -> AsyncIterator[str]:
        yield "one\n"
        await asyncio.Event().wait()

    monkeypatch.setattr(client._client, "tail_job_logs", silent)
    monkeypatch.setattr(client_module, "QUIET_SEC", 0.05)
    monkeypatch.setattr(client_module, "TROUBLE_PATIENCE_SEC", 0.0)
    given.jobs = [one_job("RUNNING"), one_job("RUNNING"), last]
    written: list[str] = []

    def follow() -> ClusterJob:
        return client.follow("label-1", written.append)

    if expected is not None:
        with pytest.raises(expected):
            follow()
    else:
        assert follow().state == "SUCCEEDED"
    assert "".join(written) == "one\ntwo\n"
