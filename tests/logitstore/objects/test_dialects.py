"""Servers that speak S3 and not as Amazon's does: refused in words, or served by another request."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.loaders import JSONFileLoader

from labeler.job.driver_lease import acquire
from logitstore.__main__ import main
from logitstore.errors import ObjectStoreError
from logitstore.job_objects import LEASE_NAME
from logitstore.objects.opening import Objects
from logitstore.objects.probing import require_conditional_writes
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import commit_units, make_manifest
from tests.servers.s3_dialects import Dialect, run_dialect


@pytest.mark.parametrize("dialect", ["ignores If-None-Match", "ignores If-Match"])
def test_a_server_without_conditions_gets_no_job(dialect: Dialect) -> None:
    with run_dialect(dialect) as server:
        objects = Objects("s3://b/store", server.storage_options)
        with pytest.raises(ObjectStoreError, match=f"the server {dialect}.* write to a server that keeps"):
            acquire(objects, 60, lambda _: None)
        assert server.data == {}, "neither a lease nor what it was tried with is left"


def test_a_server_that_knows_no_conditions_is_named_for_it() -> None:
    with run_dialect("no conditional writes") as server:
        objects = Objects("s3://b/store", server.storage_options)
        for put in (
            lambda: objects.put_if_absent("a.json", b"a"),
            lambda: objects.put_if_match("a.json", b"a", '"tag"'),
            lambda: LogitStore.create("s3://b/s", make_manifest(), storage_options=server.storage_options),
        ):
            with pytest.raises(
                ObjectStoreError, match=r"does not know conditional PUTs .*local directory"
            ) as told:
                put()
            assert "credentials" not in str(told.value)
        assert server.data == {}


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["plain", "wants Content-MD5", "no DeleteObjects"])
def test_a_server_with_conditions_is_used(dialect: Dialect) -> None:
    with run_dialect(dialect) as server:
        lease = acquire(Objects("s3://b/store", server.storage_options), 60, lambda _: None)
        lease.release()
        assert list(server.data) == [f"store/{LEASE_NAME}"]


@pytest.mark.parametrize("dialect", ["plain", "wants Content-MD5", "no DeleteObjects"])
def test_objects_are_deleted_one_by_one_where_batches_are_not_taken(dialect: Dialect) -> None:
    with run_dialect(dialect) as server:
        store = LogitStore.create("s3://b/store", make_manifest(), storage_options=server.storage_options)
        commit_units(store, range(3))
        assert store.compact().not_removed == ""
        assert store.objects.list("commits/") == []
        assert verify_store(store).problems == []
        if dialect != "plain":
            assert server.requests.count("POST") == 1, "asked once, not before every deletion"
            assert server.requests.count("DELETE") == 3


@pytest.mark.slow
def test_a_failed_clean_up_is_a_warning(
    tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_dialect("no deletes") as server:
        store = LogitStore.create("s3://b/store", make_manifest(), storage_options=server.storage_options)
        commit_units(store, [0])
        for name, value in server.storage_options["client_kwargs"].items():
            monkeypatch.setenv({"endpoint_url": "AWS_ENDPOINT_URL", "region_name": "AWS_REGION"}[name], value)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        assert main(["compact", "s3://b/store"]) == 0
        said = capsys.readouterr()
        assert "1 units in 1 segments" in said.out
        assert "warning: garbage stays until `verify --repair`" in said.err
        assert len(LogitStore.open("s3://b/store", storage_options=server.storage_options).shards()) == 1


def test_a_place_that_cannot_replace_gets_no_job() -> None:
    """As gs://, whose file system creates exclusively but replaces unconditionally."""
    objects = Objects("memory://place")
    with pytest.raises(ObjectStoreError, match=r"cannot replace an object only if it is unchanged"):
        require_conditional_writes(objects)
    assert objects.list() == []


def test_a_second_connection_reads_no_description_of_services_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore reads them once for each session, 0.2 s long, and s3fs makes a session for each connection."""
    read: list[str] = []
    load = JSONFileLoader.load_file

    def counted(loader: JSONFileLoader, path: str) -> Any:
        read.append(path)
        return load(loader, path)

    with run_dialect("plain") as server:
        Objects("s3://b/first", server.storage_options).put("name", b"content")
        monkeypatch.setattr(JSONFileLoader, "load_file", counted)
        assert Objects("s3://b/first", server.storage_options).get("name") == b"content"
    assert read == []
