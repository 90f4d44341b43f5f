"""What a server says in place of an answer: whose fault it is, and what becomes of the request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai import OpenAI

from benchmarks.servers.serving import serving
from labeler.config.loading import TeacherConfig
from labeler.config.teacher_settings import ApiTeacherConfig
from labeler.teacher.openai.calls import (
    Caller,
    RefusedError,
    RequestFailedError,
    ServerFailedError,
    StillMalformedError,
)
from labeler.teacher.openai.refusals import pause_asked_for
from tests.labeler.teacher.openai.json_server import json_server


@contextmanager
def caller_at(status: int, body: dict[str, Any]) -> Iterator[Caller]:
    """Of a server that always answers so."""

    def reply(path: str, headers: Message, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return status, body

    with json_server(reply) as url:
        yield _caller(url)


def _caller(url: str) -> Caller:
    api = ApiTeacherConfig(base_url=url, tries=2, longest_pause_sec=0.01)
    config = TeacherConfig(engine="openai", model="m", api=api)
    return Caller(OpenAI(base_url=url, api_key="-", max_retries=0, timeout=30), config)


def _ask(caller: Caller) -> Any:
    return caller.complete({"model": "m", "prompt": [1]}, 1, lambda answer: answer.choices[0].text)


CASES: dict[str, tuple[int, dict[str, Any], type[Exception], str, int]] = {
    "no money left": (
        402,
        {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}},
        ServerFailedError,
        "refuses with 402: .*the account's money is spent",
        1,
    ),
    "a flagged prompt": (
        403,
        {"error": {"message": "your input was flagged", "code": 403}},
        RefusedError,
        "the server's filter refuses it",
        1,
    ),
    "a flagged account": (
        403,
        {"error": {"message": "This organization has been flagged by our systems"}},
        ServerFailedError,
        "set the key",
        1,
    ),
    "a closed account": (
        401,
        {"error": {"message": "Your account was flagged for content_policy", "code": "account_deactivated"}},
        ServerFailedError,
        "set the key",
        1,
    ),
    "a wrong key": (403, {"error": {"message": "no"}}, ServerFailedError, "set the key", 1),
    "busy, within an answer": (
        200,
        {"error": {"message": "Rate limit exceeded", "code": 429}},
        ServerFailedError,
        "failed 2 times .* the last with 429: Rate limit exceeded",
        2,
    ),
    "busy, in words alone": (
        200,
        {"error": {"message": "wait a moment", "type": "overloaded_error"}},
        ServerFailedError,
        "the last with overloaded_error: wait a moment",
        2,
    ),
    "busy, within a choice": (
        200,
        {"choices": [{"text": "", "finish_reason": "error", "error": {"message": "gone", "code": 502}}]},
        ServerFailedError,
        "the last with 502: gone",
        2,
    ),
    "no money left, within an answer": (
        200,
        {"error": {"message": "add credits", "code": "402"}},
        ServerFailedError,
        "the account's money is spent",
        1,
    ),
    "too long, within an answer": (
        200,
        {"error": "the maximum context is 8 tokens"},
        RefusedError,
        "takes no prompt of that length",
        1,
    ),
    "an error that says nothing": (
        200,
        {"error": {"code": None}},
        RequestFailedError,
        "the last with an error",
        2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_refusal_has_its_cause(case: str) -> None:
    status, body, kind, words, num_tries = CASES[case]
    with caller_at(status, body) as caller, pytest.raises(kind, match=words) as caught:
        _ask(caller)
    assert caught.type is kind
    assert caller.num_tries == num_tries
    assert (caller.billed.num_on_the_way, caller.billed.num_answers) == (0, 0)


@pytest.mark.parametrize("choices", [[5], ["text"], [], None, {"a": 1}, 5])
def test_an_answer_of_another_form_is_asked_for_again(choices: Any) -> None:
    """Its unit failed, and with it the answers to all others of the unit."""
    with caller_at(200, {"choices": choices}) as caller, pytest.raises(StillMalformedError) as caught:
        _ask(caller)
    assert "the answer is not of OpenAI's form" in str(caught.value)
    assert (caller.num_tries, caller.billed.num_lost) == (2, 2)


def test_an_error_that_is_null_is_none() -> None:
    with caller_at(200, {"error": None, "choices": [{"text": "yes", "error": None}]}) as caller:
        assert _ask(caller) == "yes"


def test_a_page_in_place_of_an_answer_is_shown() -> None:
    class Page(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            content = b"<html>a web page</html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Page)) as server:
        caller = _caller(f"http://127.0.0.1:{server.server_port}/v1")
        with pytest.raises(ServerFailedError, match=r"<html>a web page.*check teacher\.api\.base_url"):
            _ask(caller)


@pytest.mark.parametrize(
    ("headers", "pause_sec"),
    [
        ({}, 0.0),
        ({"retry-after": "7.5"}, 7.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        (
            {
                "retry-after": "Mon, 30 Nov 2026 02:01:30 GMT",
                "date": "Mon, 30 Nov 2026 02:00:00 GMT",
            },
            90.0,
        ),
        ({"retry-after": "Mon, 30 Nov 1998 02:01:30 GMT"}, 0.0),
        ({"retry-after": "Mon, 30 Nov 2026 02:01:30 GMT", "date": "today"}, 0.0),
    ],
)
def test_a_server_may_ask_for_a_pause_in_seconds_or_until_a_date(
    headers: dict[str, str], pause_sec: float
) -> None:
    assert pause_asked_for(headers) == pause_sec
