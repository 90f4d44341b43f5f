"""The page's server: GET only, on loopback, for one person on this machine or at the end of a tunnel."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from logitstore.errors import StoreError, UnsupportedInputError
from logitstore.index.entries import ShardIndex
from logitstore.objects.addresses import is_local_uri
from logitstore.viewer.encoding import Json
from logitstore.viewer.finding import Question
from logitstore.viewer.overview import StoreView
from logitstore.viewer.page import build_page, script_json
from logitstore.viewer.pages import SequencePages
from logitstore.viewer.payload import rejects_payload, sequence_payload, summary_payload

MAX_PAGE = 500
IDLE_SEC = 20
"""A connection that is silent for so long, or takes nothing, is closed."""
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class ViewerServer(ThreadingHTTPServer):
    """Serves the page and its JSON. `jobs_file` holds a cluster's jobs as JSON, replaced from outside."""

    daemon_threads = True

    def __init__(
        self,
        views: Sequence[StoreView],
        port: int,
        jobs_file: Path | None = None,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.views = list(views)
        self._tokenizer = tokenizer
        self._adding = threading.Lock()
        self.jobs_file = jobs_file
        self.page = build_page({"mode": "live"}, title="Penumbra", connect=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def overview(self) -> Json:
        """Every store's card and the cluster's jobs; a job's store is shown from then on."""
        jobs = self._jobs()
        with self._adding:
            known = {view.uri for view in self.views}
            named = {str(job["store"]): job for job in jobs if job.get("store")}
            for uri in [uri for uri in named if uri not in known and not may_open(uri)]:
                named.pop(uri)["message"] = (
                    f"the store at {uri:.200} is not opened, since a job named it and not you: give it to "
                    "`penumbra store view` if you want to see it"
                )
            stores = list(named)
            self.views += [StoreView(uri, self._tokenizer) for uri in stores if uri not in known]
        return {"jobs": jobs, "stores": [view.describe() for view in self.views]}

    def _jobs(self) -> list[dict[str, Any]]:
        if self.jobs_file is None or not self.jobs_file.is_file():
            return []
        jobs = json.loads(self.jobs_file.read_text(encoding="utf-8"))
        if not isinstance(jobs, list) or not all(map(_is_job, jobs)):
            raise ValueError(
                f"{self.jobs_file} is no list of jobs; give a file that `cluster dashboard` writes"
            )
        return jobs

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left or fell silent is nobody's trouble; anything else is shown as usual."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def sequences(self, store: int, start: int, count: int, question: Question) -> Json:
        """The list's page from `start`; an empty one where a store holds nothing yet.

        For a question `total` is what was found among the `looked` of `of` sequences looked through so far.
        """
        view = self.views[store]
        _, pages = view.open()
        while True:
            shards, starts = pages.shards()
            try:
                found = _page_of(view, pages, (shards, starts), start, min(count, MAX_PAGE), question)
            except IndexError:
                if pages.shards()[0] is shards:
                    raise
            else:
                if pages.shards()[0] is shards:
                    return found
            # Another request has just taken in a change, so that numbers are those of other sequences.

    def sequence(self, store: int, index: int) -> Json:
        view = self.views[store]
        opened, pages = view.open()
        (sequence,) = pages.read(index, 1)
        spec = opened.manifest.labels
        return sequence_payload(index, sequence, spec, view.texts, view.student) | {"total": pages.total}

    def record(self, store: int, record_id: str, sample_index: int) -> Json:
        """The number of a record's sample, for addresses that outlast a job."""
        _, pages = self.views[store].open()
        index = pages.find(record_id, sample_index)
        if index is None:
            raise IndexError(f"record {record_id!r:.120} has no sample {sample_index} among those shown here")
        return {"index": index}

    def rejects(self, store: int, start: int, count: int) -> Json:
        return rejects_payload(self.views[store].rejects(), start, min(count, MAX_PAGE))


def _page_of(
    view: StoreView,
    pages: SequencePages,
    listed: tuple[ShardIndex, np.ndarray],
    start: int,
    count: int,
    question: Question,
) -> Json:
    facts: Json = {"start": start, "total": pages.total, "looked": pages.total, "of": pages.total}
    if question.takes_all_as_they_are:
        numbers = list(range(start, min(start + count, pages.total)))
    else:
        answer = view.finder.ask(question, *listed)
        numbers = answer.numbers[start : start + count].tolist()
        facts |= {"total": len(answer.numbers), "looked": answer.looked, "of": answer.total}
        facts |= {"problem": answer.problem, "unmet": answer.unmet}
    lines = zip(numbers, pages.lines(numbers), strict=True)
    summaries = [summary_payload(number, line, view.conversations) for number, line in lines]
    return {**facts, "sequences": summaries}


def may_open(uri: str) -> bool:
    """Whether a store that a job named, and not this page's user, is opened from this machine.

    Whoever may submit jobs could otherwise make it ask any server that it reaches.
    """
    return "::" not in uri and (is_local_uri(uri) or uri.startswith(("s3://", "s3a://")))


def _is_job(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("id", "state"))


def _json_bytes(value: Json) -> bytes:
    """Raises ValueError for what JSON has no form for, as a file of jobs may hold: NaN, half a character."""
    return script_json(value).encode()


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE_SEC
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms until the browser has confirmed its headers
    server_version = "penumbra"
    sys_version = ""
    server: ViewerServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if not self._is_local():
            # A page elsewhere could point a name of its own at 127.0.0.1 and read the labels.
            self._reply_json(
                HTTPStatus.FORBIDDEN, {"error": "this server answers to 127.0.0.1 and localhost only"}
            )
            return
        try:
            url = urlsplit(self.path)
        except ValueError as error:
            self._reply_json(HTTPStatus.BAD_REQUEST, {"error": f"{self.path!r:.80} is no address ({error})"})
            return
        if url.path == "/":
            self._reply(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page.html.encode())
            return
        for pattern, answer in _ROUTES:
            match = pattern.fullmatch(url.path)
            if match:
                self._answer(answer, [int(text) for text in match.groups()], parse_qs(url.query))
                return
        self._reply_json(HTTPStatus.NOT_FOUND, {"error": f"no page {url.path!r}"})

    def _answer(self, answer: _Answer, numbers: list[int], query: dict[str, list[str]]) -> None:
        try:
            if numbers and numbers[0] >= len(self.server.views):
                raise IndexError(f"no store {numbers[0]}: this page shows {len(self.server.views)}")
            body = _json_bytes(answer(self.server, numbers, query))
        except IndexError as error:
            self._reply_json(HTTPStatus.NOT_FOUND, {"error": str(error)})
        except UnsupportedInputError as error:
            self._reply_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except (StoreError, OSError) as error:
            self._reply_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        except (ValueError, RecursionError) as error:
            self._reply_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        else:
            self._reply(HTTPStatus.OK, "application/json", body)

    def _is_local(self) -> bool:
        port = self.server.server_port
        return self.headers.get("Host", "") in [f"{host}:{port}" for host in LOOPBACK_HOSTS]

    def _reply_json(self, status: HTTPStatus, value: Json) -> None:
        self._reply(status, "application/json", _json_bytes(value))

    def _reply(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", self.server.page.policy + "; frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged; errors are shown on the page."""


_Answer = Callable[[ViewerServer, list[int], dict[str, list[str]]], Json]
_ROUTES: list[tuple[re.Pattern[str], _Answer]] = [
    (re.compile("/api/overview"), lambda server, numbers, query: server.overview()),
    (
        re.compile(r"/api/stores/(\d{1,6})/sequences"),
        lambda server, numbers, query: server.sequences(numbers[0], *_span(query), _question(query)),
    ),
    (
        re.compile(r"/api/stores/(\d{1,6})/sequences/(\d{1,15})"),
        lambda server, numbers, query: server.sequence(numbers[0], numbers[1]),
    ),
    (
        re.compile(r"/api/stores/(\d{1,6})/record"),
        lambda server, numbers, query: server.record(
            numbers[0], _text(query, "id"), _whole(query, "sample", 0)
        ),
    ),
    (
        re.compile(r"/api/stores/(\d{1,6})/rejects"),
        lambda server, numbers, query: server.rejects(numbers[0], *_span(query)),
    ),
]


def _span(query: dict[str, list[str]]) -> tuple[int, int]:
    return _whole(query, "start", 0), _whole(query, "count", 50)


def _question(query: dict[str, list[str]]) -> Question:
    order: Any = _text(query, "order") or "number"  # Question refuses another
    return Question(_text(query, "text"), _text(query, "where"), order, _text(query, "descending") == "1")


def _text(query: dict[str, list[str]], name: str) -> str:
    return query.get(name, [""])[0]


def _whole(query: dict[str, list[str]], name: str, default: int) -> int:
    text = query.get(name, [str(default)])[0]
    if not re.fullmatch(r"\d{1,15}", text):
        raise ValueError(f"{name}={text!r} must be a whole number of at most 15 digits")
    return int(text)
