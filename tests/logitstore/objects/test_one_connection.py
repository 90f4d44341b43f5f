"""Servers of folders whose one connection is for one thread at a time, as sftp:// and ftp:// have them.

paramiko is in no lock of ours, so its file system is played by one on a disk with the same two habits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry

from logitstore.__main__ import main
from logitstore.errors import UnsuitablePlaceError
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from logitstore.tokenizer_objects import put_tokenizer, stored_tokenizer
from logitstore.tools.copying import copy_store
from logitstore.tools.deletion import delete_records
from logitstore.tools.purge import purge
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import commit_units, make_manifest

LOOK_SEC = 0.005
"""So long a request goes on in which another thread may come in."""


class OneConnection(LocalFileSystem):
    """Files are put into folders that are there, and requests are made by one thread at a time."""

    owner = 0
    """The thread whose request is under way."""
    intruders = 0
    """Requests that another thread made meanwhile. paramiko waits for ever after one."""
    second = threading.Event()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return urlsplit(path).path.rstrip("/") if isinstance(path, str) else path

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        return {}

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        with self._request():
            return super()._open(path, mode, block_size, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        with self._request():
            return super().info(path, **kwargs)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> Any:
        with self._request():
            return super().mkdir(path, create_parents, **kwargs)

    @contextlib.contextmanager
    def _request(self) -> Iterator[None]:
        kind, me = type(self), threading.get_ident()
        if kind.owner not in (0, me):
            kind.intruders += 1
            kind.second.set()
        before, kind.owner = kind.owner, me
        try:
            kind.second.wait(LOOK_SEC)
            yield
        finally:
            kind.owner = before


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder below which nothing is yet."""
    monkeypatch.setitem(_registry, "sftp", OneConnection)
    monkeypatch.setattr(OneConnection, "owner", 0)
    monkeypatch.setattr(OneConnection, "intruders", 0)
    monkeypatch.setattr(OneConnection, "second", threading.Event())
    (tmp_path / "server").mkdir()
    return f"sftp://somewhere{tmp_path}/server/deep/store"


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    """Four compacted units."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    commit_units(store, range(4))
    put_tokenizer(store.objects, {"tokenizer.json": b"{}"})
    store.compact()
    return store


def test_a_store_is_brought_there_and_read(store: LogitStore, address: str, tmp_path: Path) -> None:
    """Its folders were not made ("check that the bucket exists"), and eight threads waited for ever."""
    assert main(["copy", store.uri, address]) == 0
    copy = LogitStore.open(address)
    assert copy.digest == store.digest
    assert verify_store(copy).problems == []
    for command in (
        ["export", address, "--to", "parquet", address.replace("store", "tables/")],
        ["publish", address, address.replace("store", "public")],
        ["merge", address, "--out", str(tmp_path / "merged")],
        ["copy", address, str(tmp_path / "back")],
    ):
        assert main([*command, "--quiet"]) == 0, command
    public = Objects(address.replace("store", "public"))
    assert stored_tokenizer(public) == stored_tokenizer(store.objects)
    assert LogitStore.open(tmp_path / "back").digest == store.digest
    assert OneConnection.intruders == 0


def test_what_cannot_be_done_there_leaves_nothing(store: LogitStore, address: str) -> None:
    copy_store(store, Objects(address))
    copy = LogitStore.open(address)
    before = Objects(address).list()
    with pytest.raises(UnsuitablePlaceError, match="penumbra store copy"):
        delete_records(copy, frozenset({"record-1"}), "asked for")
    delete_records(store, frozenset({"record-1"}), "asked for")
    with pytest.raises(UnsuitablePlaceError, match="penumbra store copy"):
        purge(copy)
    assert Objects(address).list() == before
    copy_store(store, Objects(address))
    assert [one.record_id for one in LogitStore.open(address)] == [one.record_id for one in store]


def test_a_mirror_there_is_rid_of_what_was_deleted(
    store: LogitStore, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the warning of `copy` says; it was refused, as no index can be replaced there."""
    copy_store(store, Objects(address))
    delete_records(store, frozenset({"record-1"}), "asked for")
    purge(store)
    assert main(["copy", store.uri, address]) == 0
    assert f"`penumbra store verify {address} --repair` removes them" in capsys.readouterr().err
    assert main(["verify", address, "--repair", "--grace-sec", "0"]) == 0
    assert len(Objects(address).list("index/")) == 2, "the segment of now, and its ids"
    assert verify_store(LogitStore.open(address), grace_sec=0).problems == []
    assert main(["copy", store.uri, address]) == 0
    assert capsys.readouterr().err == ""
