"""The page's server and its single-file form, against stores written by the library."""

from __future__ import annotations

import base64
import dataclasses
import gc
import hashlib
import html.parser
import http.client
import json
import re
import socket
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.servers.serving import serving
from logitstore.__main__ import main
from logitstore.job_objects import STATUS_NAME, Cost
from logitstore.records import Reject
from logitstore.store import LogitStore
from logitstore.viewer import server as server_module
from logitstore.viewer.overview import StoreView
from logitstore.viewer.page import build_page
from logitstore.viewer.pages import SequencePages
from logitstore.viewer.server import ViewerServer
from logitstore.viewer.static import write_static_page
from tests.logitstore.viewer.viewer_records import manifest_of, sequence_of

VOCAB = 300
MARKUP = "</script><img src=x onerror=alert(1)>"


def fill(uri: Path, units: int, per_unit: int, *, tokens: int = 12) -> LogitStore:
    rng = np.random.default_rng(0)
    store = LogitStore.create(str(uri), manifest_of(VOCAB, 8))
    for unit in range(units):
        sequences = [
            sequence_of(
                f"{MARKUP}{unit}/{i}", rng.integers(0, VOCAB, tokens).tolist(), rng, vocab_size=VOCAB, top_k=8
            )
            for i in range(per_unit)
        ]
        reject = Reject("in.jsonl", unit + 1, None, "not JSON", "invalid_json")
        store.commit_unit(f"u{unit}", unit, sequences, [reject], seconds=1.0, worker="test")
    return store


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("viewer") / "store"
    fill(place, 3, 5)
    return str(place)


@pytest.fixture
def server(store_uri: str, tmp_path: Path) -> Iterator[ViewerServer]:
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([{"id": "job-1", "state": "RUNNING", "store": str(tmp_path / "of-the-job")}]))
    with serving(ViewerServer([StoreView(store_uri), StoreView(str(tmp_path / "not-yet"))], 0, jobs)) as made:
        yield made


def get(server: ViewerServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def get_json(server: ViewerServer, path: str) -> dict[str, Any]:
    status, _, body = get(server, path)
    assert status == 200, body
    return json.loads(body)


def test_overview_has_totals_jobs_and_what_is_missing(server: ViewerServer, store_uri: str) -> None:
    overview = get_json(server, "/api/overview")
    ready, missing, of_the_job = overview["stores"]
    entries = list(LogitStore.open(store_uri).shards())
    assert ready["totals"]["num_sequences"] == 15
    assert ready["totals"]["num_rows"] == 15 * 11
    assert ready["totals"]["num_bytes"] == sum(entry.num_bytes for entry in entries)
    assert ready["totals"]["num_rejects"] == 3
    assert "--tokenizer" in ready["tokenizer_note"]
    assert "no store" in missing["problem"]
    assert overview["jobs"][0]["id"] == "job-1"
    assert overview["jobs"][0]["store"] == of_the_job["uri"]
    assert len(get_json(server, "/api/overview")["stores"]) == 3


def test_pages_cover_every_sequence_once(server: ViewerServer) -> None:
    seen = []
    for start in range(0, 20, 4):
        page = get_json(server, f"/api/stores/0/sequences?start={start}&count=4")
        assert page["total"] == 15
        seen += [(one["index"], one["record_id"]) for one in page["sequences"]]
    assert seen == [(i, f"{MARKUP}{i // 5}/{i % 5}") for i in range(15)]


def test_a_sequence_travels_without_loss(server: ViewerServer, store_uri: str) -> None:
    stored = list(LogitStore.open(store_uri).iter_sequences())[7]
    found = get_json(server, "/api/stores/0/sequences/7")
    assert found["token_ids"] == stored.token_ids_T.tolist()
    rows = found["rows"]
    for name, dtype, array in (
        ("logits_NK", "<f4", stored.rows.logits_NK),
        ("token_ids_NK", "<i4", stored.rows.token_ids_NK),
        ("log_tail_mass_NM", "<f4", stored.rows.log_tail_mass_NM),
        ("label_rank_N", "<i4", stored.rows.label_rank_N),
    ):
        sent = np.frombuffer(base64.b64decode(rows[name]), dtype).reshape(array.shape)
        np.testing.assert_array_equal(sent, array)
    ids = {*stored.token_ids_T.tolist(), *stored.rows.token_ids_NK.ravel().tolist()}
    assert set(map(int, found["pieces"])) == ids


def test_rejects_are_counted_and_paged(server: ViewerServer) -> None:
    page = get_json(server, "/api/stores/0/rejects?start=1&count=1")
    assert page["total"] == 3
    assert page["kinds"] == {"invalid_json": 3}
    assert [one["line"] for one in page["rejects"]] == [2]


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/api/stores/0/sequences/15", 404, "the store has 15"),
        ("/api/stores/5/sequences", 404, "no store 5"),
        ("/api/stores/1/sequences", 500, "no store lies at"),
        ("/api/stores/0/sequences?start=-1", 400, "whole number"),
        ("/etc/passwd", 404, "no page"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(server: ViewerServer, path: str, status: int, says: str) -> None:
    got, _, body = get(server, path)
    assert got == status
    assert says in json.loads(body)["error"]


@pytest.mark.parametrize("port", ["taken", "70000"])
def test_a_port_that_cannot_be_had_names_the_remedy(
    server: ViewerServer, store_uri: str, port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(server.server_port) if port == "taken" else port
    assert main(["view", store_uri, "--port", port]) == 2
    said = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1" in said
    assert "--port, or 0 for any" in said


def test_only_local_names_are_answered(server: ViewerServer) -> None:
    status, _, body = get(server, "/api/overview", Host="evil.example:80")
    assert status == 403
    assert b"job-1" not in body


def test_policy_allows_the_pages_own_script_and_nothing_else(server: ViewerServer) -> None:
    status, headers, body = get(server, "/")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    script, style = (
        re.findall(f"<{tag}>(.*?)</{tag}>", body.decode(), re.DOTALL) for tag in ("script", "style")
    )
    assert len(script) == len(style) == 1
    for text in (*script, *style):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_scripts_never_make_markup_from_text(server: ViewerServer) -> None:
    body = get(server, "/")[2].decode()
    banned = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "DOMParser",
    )
    assert [name for name in banned if name in body] == []
    # SVG's namespace apart, no address outside: the page must work without a network.
    assert re.findall(r"https?://", body) == []


class Elements(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_embedded_values_cannot_leave_their_block() -> None:
    plain, hostile = Elements(), Elements()
    plain.feed(build_page({"mode": "static"}, title="x", connect=False).html)
    data = {"mode": "static", "evil": MARKUP + "<!--<script>&lt;", "{{SCRIPT}}": "{{DATA}}"}
    page = build_page(data, title=MARKUP + "{{SCRIPT}}", connect=False)
    hostile.feed(page.html)
    assert hostile.tags == plain.tags
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.html, re.DOTALL)
    assert block is not None
    assert json.loads(block[1]) == data


def test_one_file_holds_the_first_sequences(store_uri: str, tmp_path: Path) -> None:
    out = tmp_path / "labels.html"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        size = write_static_page(store_uri, out, max_sequences=4, top_k=3)
        gc.collect()
    assert [str(one.message) for one in warned] == [], "a shard is left open"
    assert out.stat().st_size == size
    block = re.search(r'id="data">(.*?)</script>', out.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    data = json.loads(block[1])
    assert [one["record_id"] for one in data["sequences"][0]] == [f"{MARKUP}0/{i}" for i in range(4)]
    assert data["sequences"][0][0]["rows"]["top_k"] == 3
    assert data["overview"]["stores"][0]["totals"]["num_sequences"] == 15
    assert list(tmp_path.iterdir()) == [out]


def test_a_new_shard_appears_after_refresh_and_blocks_are_found(tmp_path: Path) -> None:
    # 300 sequences of 63 rows make several blocks of about 4,096 rows in one shard.
    store = fill(tmp_path / "s", 1, 300, tokens=64)
    pages = SequencePages(LogitStore.open(str(tmp_path / "s")))
    everything = [one.record_id for one in store.iter_sequences()]
    assert [one.record_id for one in pages.read(0, 400, top_k=1)] == everything
    assert [pages.read(i, 1)[0].record_id for i in (0, 64, 65, 66, 199, 299)] == [
        everything[i] for i in (0, 64, 65, 66, 199, 299)
    ]
    late = [dataclasses.replace(one, record_id="late") for one in pages.read(0, 1)]
    store.commit_unit("u9", 9, late, seconds=1.0, worker="test")
    assert pages.total == 300
    pages.refresh()
    assert pages.total == 301
    assert pages.read(300, 5)[0].record_id == "late"
    with pytest.raises(IndexError, match="has 301"):
        pages.read(301, 1)


def test_status_of_a_dead_driver_is_silent(tmp_path: Path) -> None:
    store = fill(tmp_path / "s", 1, 1)
    view = StoreView(str(tmp_path / "s"))
    assert view.describe()["status"] is None
    beat = {
        "state": "running",
        "units_done": 1,
        "units_total": 4,
        "tokens_per_second": 9.5,
        "workers": [{"name": "w0", "node": "3"}],
        "cost": dataclasses.asdict(Cost("gpu", 7200.0, 10, 20, 5.5, 0.25, "EUR")),
    }
    for age_sec, state in ((5, "running"), (600, "silent")):
        updated = (datetime.now(UTC) - timedelta(seconds=age_sec)).isoformat()
        store.objects.put(STATUS_NAME, json.dumps(beat | {"updated": updated}).encode())
        status = view.describe()["status"]
        assert isinstance(status, dict)
        assert status["state"] == state
        assert status["units_total"] == 4
        assert status["workers"] == [{"name": "w0", "node": "3", "state": "", "unit": None, "restarts": 0}]
        assert status["cost"]["device_sec"] == 7200
    for content in (b"{", b"[]", b'{"state": "running", "workers": 3}'):
        store.objects.put(STATUS_NAME, content)
        broken = view.describe()["status"]
        assert isinstance(broken, dict)
        assert broken["state"] == "unreadable"


def test_connections_that_say_nothing_are_closed(
    server: ViewerServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_module._Handler, "timeout", 0.3)
    before = threading.active_count()
    halves = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(20)]
    for number, half in enumerate(halves):
        half.sendall(b"GET / HTTP/1.1\r\nHost:"[: number + 1])
    assert get(server, "/")[0] == 200
    for half in halves:
        half.settimeout(10)
        assert half.recv(1000) == b"", "closed by the server"
        half.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before
    assert capfd.readouterr().err == ""


def test_a_body_is_sent_at_once(server: ViewerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from its headers it waits 40 ms for their receipt, unless the server's end says not to."""
    ends: list[socket.socket] = []
    finish = server.finish_request

    def finish_kept(request: socket.socket, address: tuple[str, int]) -> None:
        ends.append(request)
        finish(request, address)

    monkeypatch.setattr(server, "finish_request", finish_kept)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", "/api/stores/0/sequences/3")
    assert connection.getresponse().read()
    assert ends[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    connection.close()


def test_a_place_without_a_store_is_said_and_looked_at_again(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt one was served without a word in the terminal."""
    monkeypatch.setattr(ViewerServer, "serve_forever", lambda *_, **__: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main(["view", store_uri, str(tmp_path / "nowhere"), "--port", "0"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("serving http://127.0.0.1:")
    (line,) = said.err.splitlines()
    assert re.match(r"penumbra store view: warning: no store lies at \S+/nowhere: .*looks again", line)


def test_a_client_that_leaves_is_not_told_to_the_terminal(
    server: ViewerServer, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):
        left = socket.create_connection(("127.0.0.1", server.server_port))
        host = f"Host: 127.0.0.1:{server.server_port}\r\n".encode()
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, at once
        left.sendall(b"GET /api/stores/0/sequences HTTP/1.1\r\n" + host + b"\r\n")
        left.close()
    assert get(server, "/")[0] == 200
    time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_an_address_that_is_none_is_answered(server: ViewerServer, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        host = f"Host: 127.0.0.1:{server.server_port}\r\nConnection: close\r\n\r\n".encode()
        connection.sendall(b"GET http://[evil HTTP/1.1\r\n" + host)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"is no address" in answer
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/meta", "simplecache::s3://b/x", "ftp://127.0.0.1:9/x"])
def test_a_store_that_a_job_named_elsewhere_is_not_opened(
    server: ViewerServer, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.jobs_file is not None
    server.jobs_file.write_text(json.dumps([{"id": "j", "state": "RUNNING", "store": uri, "message": ""}]))
    monkeypatch.setattr("logitstore.objects.opening._open_backend", lambda uri, _: pytest.fail(uri))
    monkeypatch.setattr(server, "views", [])
    overview = server.overview()
    assert overview["stores"] == []
    assert f"the store at {uri} is not opened" in json.dumps(overview["jobs"])


def test_a_jobs_file_of_another_form_is_said(server: ViewerServer) -> None:
    assert server.jobs_file is not None
    for jobs in ('{"not": "a list"}', '["job"]', '[{"id": "job"}]', '[{"id": 1, "state": "RUNNING"}]'):
        server.jobs_file.write_text(jobs)
        status, _, body = get(server, "/api/overview")
        assert (status, b"is no list of jobs" in body) == (400, True)


@pytest.mark.parametrize("jobs", ['[{"id": NaN}]', '[{"id": "\\ud800"}]', "[" * 100_000])
def test_a_jobs_file_that_json_has_no_form_for_is_answered(server: ViewerServer, jobs: str) -> None:
    """The connection was dropped, and the terminal had a traceback at every refresh."""
    assert server.jobs_file is not None
    server.jobs_file.write_text(jobs)
    status, _, body = get(server, "/api/overview")
    assert (status, b"error" in body) == (400, True)
