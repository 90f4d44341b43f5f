"""hf://: stores in repositories of the Hub, read at any revision, and brought there by `hf upload` alone."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from logitstore.__main__ import main
from logitstore.errors import UnsuitablePlaceError
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import commit_units, make_manifest
from tests.servers.hub import HubServer, run_hub

pytestmark = pytest.mark.filterwarnings(
    "ignore:It seems that you are about to commit a data file", "ignore:Use 'content"
)
ADDRESSES = {
    "hf://datasets/me/labels": ("dataset", "main", ""),
    "hf://datasets/me/labels@main": ("dataset", "main", ""),
    "hf://datasets/me/labels@v1.0/run 1": ("dataset", "v1.0", "run 1"),
    "hf://datasets/me/labels@refs/pr/1": ("dataset", "refs/pr/1", ""),
    "hf://datasets/me/labels@refs%2Fpr%2F1/a/b": ("dataset", "refs/pr/1", "a/b"),
    "hf://me/labels": ("model", "main", ""),
    "hf://models/me/labels/labels": ("model", "main", "labels"),
}
FIRST = next(iter(ADDRESSES))


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    """A compacted unit, and one that a commit record alone names."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    commit_units(store, range(1))
    store.compact()
    commit_units(store, range(1, 2))
    return store


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with run_hub() as server:
        for kind, revision, _ in ADDRESSES.values():
            server.trees[kind, "me/labels", revision] = {}
        yield server


def upload(
    hub: HubServer, folder: str, kind: str, revision: str, path: str, delete: Sequence[str] = ()
) -> None:
    """As `hf upload` does."""
    HfApi(endpoint=hub.url, token="hf_" + "x" * 30).upload_folder(
        repo_id="me/labels",
        folder_path=folder,
        path_in_repo=path,
        repo_type=kind,
        revision=revision,
        delete_patterns=list(delete),
    )


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_uploaded_store_is_read_with_units_that_no_index_has(
    hub: HubServer, store: LogitStore, address: str
) -> None:
    """Of hf://models/... no listing was seen, and so no unit that is not in the index."""
    upload(hub, store.uri, *ADDRESSES[address])
    copy = LogitStore.open(address, storage_options={"endpoint": hub.url})
    assert [one.record_id for one in copy] == [one.record_id for one in store]
    findings = verify_store(copy)
    assert (findings.errors, findings.num_units) == ([], 2)
    assert len(hub.commits) == 1


def test_what_is_uploaded_later_is_seen(hub: HubServer, store: LogitStore) -> None:
    """Sizes of a listing from before were taken for those of now: index.json was cut off."""
    place = ADDRESSES[FIRST]
    upload(hub, store.uri, *place)
    copy = LogitStore.open(FIRST, storage_options={"endpoint": hub.url})
    assert verify_store(copy).errors == []
    commit_units(store, range(2, 4))
    store.compact()
    commit_units(store, range(4, 5))
    upload(hub, store.uri, *place)
    copy.refresh()
    assert [one.record_id for one in copy] == [one.record_id for one in store]


def test_a_published_store_is_uploaded_and_goes_on(
    hub: HubServer, store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["publish", store.uri, str(tmp_path / "public"), "--licence", "mit"]) == 0
        printed = shlex.split(capsys.readouterr().out.partition("to the Hub: ")[2])
        assert printed[:5] == ["hf", "upload", "OWNER/NAME", str(tmp_path / "public"), "."]
        delete = [value for option, value in itertools.pairwise(printed) if option == "--delete"]
        upload(hub, str(tmp_path / "public"), "dataset", "main", "", delete)
        opened = LogitStore.open("hf://datasets/me/labels", storage_options={"endpoint": hub.url})
        assert [one.record_id for one in opened] == [one.record_id for one in store]
        commit_units(store, range(2, 3))
    there = hub.trees["dataset", "me/labels", "main"]
    assert sorted(there) == sorted(Objects(tmp_path / "public").list()), "an earlier publication is gone"


@pytest.mark.parametrize(
    ("command", "address"),
    [
        *(("copy", address) for address in ADDRESSES),
        *((command, FIRST) for command in ("publish", "merge --out", "export --to parquet")),
    ],
)
def test_writing_names_the_upload(
    hub: HubServer, store: LogitStore, tmp_path: Path, address: str, command: str, capsys
) -> None:
    """Each object was put by a commit of its own, of which the Hub refuses those at once and after a few."""
    options = tmp_path / "options.json"
    options.write_text(f'{{"endpoint": "{hub.url}"}}')
    name, *option = command.split()
    target = f"{address}/tables/" if name == "export" else address
    out = {"merge": "--storage-options"}.get(name, "--out-storage-options")
    assert main([name, store.uri, *option, target, out, str(options), "--quiet"]) == 2
    said = capsys.readouterr().err
    kind, revision, path = ADDRESSES[address]
    assert "the Hub takes whole commits and no single objects" in said
    upload_command = shlex.split(said.split("`")[-2])
    assert upload_command[:4] == ["hf", "upload", "me/labels", "FOLDER"]
    assert upload_command[upload_command.index("--repo-type") + 1] == kind
    if "@" in address:
        assert upload_command[-1] == revision
    if path and name != "export":
        assert upload_command[4] == path
    assert hub.commits == []


def test_deletion_and_mending_name_the_upload(hub: HubServer) -> None:
    objects = Objects("hf://datasets/me/labels", {"endpoint": hub.url})
    for write in (
        lambda: objects.delete("index.json"),
        lambda: objects.put_if_absent("index.json", b""),
        lambda: objects.put_if_match("index.json", b"", "etag"),
        objects.require_conditions,
    ):
        with pytest.raises(
            UnsuitablePlaceError, match=r"`hf upload me/labels FOLDER \. --repo-type dataset "
        ):
            write()
