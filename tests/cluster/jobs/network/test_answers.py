"""What a cluster, or a proxy before one, answers when something is wrong, and what a user is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from benchmarks.servers.serving import serving
from cluster.errors import ClusterError, ClusterUnreachableError
from cluster.jobs.client import ClusterClient
from cluster.jobs.network.address import find_way
from cluster.jobs.network.answers import meaning, reached

Answer = tuple[int, str]
RAYS_TRACEBACK = """Traceback (most recent call last):
  File "ray/dashboard/modules/job/job_head.py", line 400, in submit_job
    resp = await job_agent_client.submit_job_internal(submit_request)
ray.exceptions.RuntimeEnvError: the folder is too large:
  4 GiB of 512 MiB
"""


VERSION = '{"version": "4", "ray_version": "2.55.0", "ray_commit": "", "session_name": ""}'


class Answering:
    """A server that gives `version` when asked for Ray's, and `answer` to all else; redirections lead to it."""

    def __init__(self) -> None:
        self.version: Answer = (200, VERSION)
        self.answer: Answer = (200, "[]")
        self.location = "/elsewhere"
        self.asked: list[str] = []
        self.port = 0

    def __call__(self, status: int, body: str, *headers: str) -> ClusterClient:
        self.answer = (status, body)
        return self.client(*headers)

    def client(self, *headers: str) -> ClusterClient:
        return ClusterClient(find_way(f"http://127.0.0.1:{self.port}", headers, environ={}))


@pytest.fixture
def answering() -> Iterator[Answering]:
    given = Answering()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given.asked.append(self.path)
            status, body = given.version if self.path == "/api/version" else given.answer
            self.send_response(status)
            self.send_header("Location", given.location)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """No line on standard error for each request."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        given.port = server.server_port
        yield given


@pytest.mark.parametrize(
    "answer",
    [
        (500, "500 Internal Server Error\n\nServer got itself in trouble"),
        (502, "<html>\n<center><h1>502 Bad Gateway</h1></center>\n</html>"),
        (503, "upstream connect error"),
        (504, ""),
        (429, "<!DOCTYPE html><html><head><title>Slow down</title></head></html>"),
    ],
)
def test_a_server_in_trouble_is_no_refusal(answering: Answering, answer: Answer) -> None:
    client = answering(*answer)
    for ask in (client.jobs, client.nodes, lambda: client.log_of("j"), lambda: client.stop("j")):
        with pytest.raises(ClusterUnreachableError, match="submitting the same job file again"):
            ask()


def test_a_refusal_is_the_last_exception_of_rays_traceback(
    answering: Answering,
) -> None:
    with pytest.raises(ClusterError) as refused:
        answering(500, RAYS_TRACEBACK).jobs()
    assert not isinstance(refused.value, ClusterUnreachableError)
    assert str(refused.value).endswith(
        "refused: ray.exceptions.RuntimeEnvError: the folder is too large: 4 GiB of 512 MiB"
    )


@pytest.mark.parametrize("body", ["<html>a login page</html>", "{}", '{"data": {}}', '{"data": null}', "[]"])
def test_nodes_that_are_none_are_no_defect(answering: Answering, body: str) -> None:
    with pytest.raises(ClusterUnreachableError, match="is no Ray cluster"):
        answering(200, body).nodes()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            (200, "<html><title>Sign in</title></html>"),
            "is no Ray cluster: it answered with what is no answer",
        ),
        ((200, "{}"), "is no Ray cluster: it answered with what is no answer"),
        ((200, '{"ray_version": 2}'), "is no Ray cluster: it answered with what is no answer"),
        ((302, ""), r"sends requests elsewhere \(HTTP 302\)"),
        ((308, ""), r"sends requests elsewhere \(HTTP 308\)"),
        ((403, "who are you"), "as a proxy that wants a header of its own does"),
        ((403, "Forbidden: Invalid authentication token"), "have the proxy before it remove the header"),
        ((404, "<html>nginx</html>"), r"is not the dashboard of a Ray cluster \(HTTP 404"),
        ((407, ""), r"http://USER:PASSWORD@PROXY:PORT"),
        ((429, "slow"), r"is in trouble \(HTTP 429: slow\); ask again"),
        ((502, "<html><body><h1>Bad</h1> Gateway</body></html>"), r"is in trouble \(HTTP 502: Bad Gateway\)"),
        ((503, ""), r"is in trouble \(HTTP 503: nothing is said\)"),
    ],
)
def test_what_answers_at_the_address_is_said_before_anything_is_sent(
    answering: Answering, answer: Answer, says: str
) -> None:
    answering.version = answer
    with pytest.raises(ClusterUnreachableError, match=says) as refused:
        answering.client("X-Secret=hunter2")
    assert str(refused.value).count("submitting the same job file again") <= 1
    assert answering.asked == ["/api/version"], "a redirection would have had the header too"


def test_no_later_answer_sends_requests_elsewhere(answering: Answering) -> None:
    client = answering(301, "")
    for ask in (
        client.jobs,
        lambda: client.stop("j"),
        lambda: client.delete("j"),
        lambda: client.follow("j", print),
    ):
        with pytest.raises(ClusterUnreachableError, match=r"sends requests elsewhere \(HTTP 301\)"):
            ask()
    assert "/api/jobs/j/logs/tail" in answering.asked
    assert "/elsewhere" not in answering.asked


HERE = "http://127.0.0.1:80/team/ray"


@pytest.mark.parametrize(
    ("location", "there"),
    [
        ("https://head.example/api?x=hunter2", "https://head.example:443"),
        ("http://me:hunter2@head.example/a/hunter2#x", "http://head.example:80"),
        ("//[::1]:9/login", "http://[::1]:9"),
        ("https://head\x1b.exam\x08ple/", "https://head.example:443"),
        ("https://127.0.0.1/team/ray/api/jobs/hunter2", "https://127.0.0.1:443/team/ray"),
    ],
)
def test_a_redirection_is_told_with_the_address_that_it_leads_to(location: str, there: str) -> None:
    said = str(meaning(HERE, 302, "", location))
    assert f"{HERE} sends requests elsewhere (HTTP 302, to {there})" in said
    assert f"give --address {there} where the cluster is there" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "location",
    [
        "/login?hunter2",
        "http://127.0.0.1/hunter2",
        "",
        "mailto:hunter2",
        "https://a b/",
        "https://[x/",
        "http://a:x/",
    ],
)
def test_a_redirection_to_no_other_server_is_told_without_one(location: str) -> None:
    said = str(meaning(HERE, 302, "", location))
    assert f"{HERE} sends requests elsewhere (HTTP 302), as" in said
    assert "check its path" in said
    assert "hunter2" not in said


def test_every_request_tells_where_a_redirection_leads(answering: Answering) -> None:
    client = answering(307, "")
    answering.version = answering.answer
    answering.location = "https://head.example/login"
    for ask in (
        answering.client,
        client.jobs,
        client.nodes,
        lambda: client.stop("j"),
        lambda: client.follow("j", print),
    ):
        with pytest.raises(ClusterUnreachableError, match=r"give --address https://head\.example:443 where"):
            ask()


@pytest.mark.parametrize("body", ["null", "{}x", '[{"type": "SUBMISSION"}]', "[1]", '["x"]', "1"])
def test_jobs_that_are_none_are_no_defect(answering: Answering, body: str) -> None:
    with pytest.raises(ClusterError, match=r"install the cluster's version of Ray here|is no Ray cluster"):
        answering(200, body).jobs()


def test_what_a_proxy_does_not_take_is_said_with_the_remedy(answering: Answering) -> None:
    with pytest.raises(ClusterError, match="client_max_body_size"):
        answering(413, "<html>413 Request Entity Too Large</html>").stop("j")


@pytest.mark.parametrize(
    ("proxy", "says"),
    [
        (
            "http://me:hunter2@127.0.0.1:9",
            "the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names does not",
        ),
        ("socks5://me:hunter2@127.0.0.1:9", "requests.socks."),
        ("socks9://me:hunter2@127.0.0.1:9", "the scheme 'socks9'; it must be one of http, https, socks4"),
        ("ftp://me:hunter2@127.0.0.1:9", "the scheme 'ftp'; it must be one of http, https, socks4"),
        ("http://me:hunter2@127.0.0.1:port", "ALL_PROXY names is no URL of a proxy; write"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str, says: str) -> None:
    def without_pysocks(*_: object, **__: object) -> None:
        raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")

    monkeypatch.setattr("requests.adapters.SOCKSProxyManager", without_pysocks)
    for variable in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ClusterUnreachableError, match=says) as refused:
        ClusterClient(find_way("http://head.example:8265", environ={}))
    assert "hunter2" not in str(refused.value)


def test_a_socks_proxy_that_does_not_answer_is_named() -> None:
    """What requests raises where PySocks is installed, which it need not be here."""
    error = (
        "SOCKSHTTPConnectionPool(host='head.example', port=8265): Max retries exceeded with url: /api/version"
    )
    error += " (Caused by NewConnectionError(\"SOCKSConnection(host='head.example', port=8265): Failed\"))"
    with (
        pytest.raises(ClusterUnreachableError, match="ALL_PROXY names does not answer"),
        reached("http://a:1"),
    ):
        raise requests.exceptions.ConnectionError(error)
