"""Habits of web servers that a sound store must be read through, or that are refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from logitstore.errors import AccessRefusedError, ObjectStoreError
from logitstore.objects import http
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import commit_units, make_manifest
from tests.servers.odd_web import OddHabit, run_odd_server

REFUSED = {
    "compresses ranges": r"parts of a compressed form \(Content-Encoding: gzip\)",
    "sends the range before": "asked for bytes from .* the server says it sends",
}
READ_THROUGH = [one for one in get_args(OddHabit) if one not in {*REFUSED, "is busy at first", "redirects"}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LogitStore:
    """One compacted unit, and one that a commit record alone names."""
    store = LogitStore.create(tmp_path_factory.mktemp("odd") / "store", make_manifest())
    commit_units(store, range(1))
    store.compact()
    commit_units(store, range(1, 2))
    return store


@pytest.mark.parametrize("habit", READ_THROUGH)
def test_a_store_is_read_through_it(store: LogitStore, habit: OddHabit) -> None:
    """Each but the compressed whole ended in an error, or in a unit or bytes that were not seen."""
    with run_odd_server(Path(store.uri), habit) as server:
        copy = LogitStore.open(server.url)
        assert [one.record_id for one in copy] == [one.record_id for one in store]
        findings = verify_store(copy)
        assert (findings.errors, findings.num_units, findings.garbage) == ([], 2, [])


@pytest.mark.parametrize("habit", READ_THROUGH)
def test_sizes_and_ranges_are_those_of_the_objects(tmp_path: Path, habit: OddHabit) -> None:
    data = bytes(index % 251 for index in range(5_000))
    (tmp_path / "object").write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    with run_odd_server(tmp_path, habit) as server:
        objects = Objects(server.url)
        assert [info.num_bytes for info in objects.list_info()] == [0, 5_000]
        assert objects.get("object") == data
        assert objects.get_range("object", 7, 4_000) == data[7:4_000]
        assert objects.get_range("object", 4_000, 9_000) == data[4_000:]
        with objects.open("object") as file:
            assert file.read() == data
        assert objects.get("empty") == b""


@pytest.mark.parametrize(("habit", "says"), REFUSED.items())
def test_it_is_refused_in_words(tmp_path: Path, habit: OddHabit, says: str) -> None:
    (tmp_path / "object").write_bytes(b"0123456789")
    with run_odd_server(tmp_path, habit) as server, pytest.raises(ObjectStoreError, match=says):
        Objects(server.url).get_range("object", 2, 5)


def test_a_server_that_is_busy_is_given_the_time_it_asks_for(tmp_path: Path, monkeypatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(http.time, "sleep", pauses.append)
    (tmp_path / "object").write_bytes(b"x")
    with run_odd_server(tmp_path, "is busy at first") as server:
        assert Objects(server.url).get("object") == b"x"
    assert pauses == [3.0]


@pytest.mark.parametrize("place", ["headers", "client_kwargs"])
def test_headers_of_the_user_are_not_sent_to_another_server(tmp_path: Path, place: str) -> None:
    """Those with names of their own were; aiohttp keeps Authorization back."""
    (tmp_path / "object").write_bytes(b"x")
    headers = {"X-Api-Key": "secret", "Authorization": "Bearer secret"}
    options = {"headers": headers} if place == "headers" else {"client_kwargs": {"headers": headers}}
    with run_odd_server(tmp_path, None) as there, run_odd_server(tmp_path, "redirects", there.url) as here:
        assert Objects(here.url, options).get("object") == b"x"
        assert here.headers_seen[0].items() >= headers.items()
        assert not there.headers_seen[0].keys() & headers.keys()


def test_a_signature_is_in_no_message_in_any_form(tmp_path: Path) -> None:
    """Libraries show URLs with some of their escapes decoded."""
    with run_odd_server(tmp_path, "takes GET alone") as server:
        objects = Objects(server.url, {"query": "pass=ab%2Fcd%2Bef-secret"})
        with pytest.raises((AccessRefusedError, ObjectStoreError)) as caught:
            objects.put("object", b"x")
    assert "secret" not in str(caught.value)
    assert "ab/cd" not in str(caught.value)
