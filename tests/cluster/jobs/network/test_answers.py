"""What a cluster, or a proxy before one, answers when something is wrong, and what a user is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.servers.serving import serving
from cluster.errors import ClusterError, ClusterUnreachableError
from cluster.jobs.client import ClusterClient
from cluster.jobs.network.address import find_way

Answer = tuple[int, str]
RAYS_TRACEBACK = """Traceback (most recent call last):
  File "ray/dashboard/modules/job/job_head.py", line 400, in submit_job
    resp = await job_agent_client.submit_job_internal(submit_request)
ray.exceptions.RuntimeEnvError: the folder is too large:
  4 GiB of 512 MiB
"""


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], ClusterClient]]:
    """A client of a server that gives Ray's version and to all else one answer."""
    answer: list[Answer] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = '{"version": "4", "ray_version": "2.55.0", "ray_commit": "", "session_name": ""}'
            status, body = (200, known) if self.path == "/api/version" else answer[-1]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """No line on standard error for each request."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:

        def client(status: int, body: str) -> ClusterClient:
            answer.append((status, body))
            return ClusterClient(find_way(f"http://127.0.0.1:{server.server_port}", [], None))

        yield client


@pytest.mark.parametrize(
    "answer",
    [
        (500, "500 Internal Server Error\n\nServer got itself in trouble"),
        (502, "<html>\n<center><h1>502 Bad Gateway</h1></center>\n</html>"),
        (503, "upstream connect error"),
        (504, ""),
    ],
)
def test_a_server_in_trouble_is_no_refusal(
    answering: Callable[[int, str], ClusterClient], answer: Answer
) -> None:
    client = answering(*answer)
    for ask in (client.jobs, client.nodes, lambda: client.log_of("j"), lambda: client.stop("j")):
        with pytest.raises(ClusterUnreachableError, match="submitting the same job file again"):
            ask()


def test_a_refusal_is_the_last_exception_of_rays_traceback(
    answering: Callable[[int, str], ClusterClient],
) -> None:
    with pytest.raises(ClusterError) as refused:
        answering(500, RAYS_TRACEBACK).jobs()
    assert not isinstance(refused.value, ClusterUnreachableError)
    assert str(refused.value).endswith(
        "refused: ray.exceptions.RuntimeEnvError: the folder is too large: 4 GiB of 512 MiB"
    )


@pytest.mark.parametrize("body", ["<html>a login page</html>", "{}", '{"data": {}}', '{"data": null}', "[]"])
def test_nodes_that_are_none_are_no_defect(answering: Callable[[int, str], ClusterClient], body: str) -> None:
    with pytest.raises(ClusterUnreachableError, match="is no Ray cluster"):
        answering(200, body).nodes()
