"""A store's folder holds the store alone: no other output goes into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labeler.curation.check import CheckSettings, check_responses
from logitstore.__main__ import main
from logitstore.common.config_file import ConfigError
from logitstore.errors import StoreExistsError, UnsupportedInputError
from logitstore.exchange.merge import merge_stores
from logitstore.manifest.folders import refuse_file_name, refuse_in_store, refuse_own_place
from logitstore.objects.opening import Objects
from logitstore.store import LogitStore
from tests.logitstore.random_labels import commit_units, make_manifest, make_sequence
from tests.servers.s3_dialects import run_dialect

COMMANDS = (
    "copy STORE STORE",
    "copy STORE STORE/sub",
    "copy STORE OTHER/sub",
    "publish STORE STORE/sub",
    "merge STORE --out OTHER/sub",
    "merge STORE --out STORE/shards/new",
    "import TABLE STORE/sub --from jsonl",
    "export STORE STORE/table.parquet",
    "export STORE STORE --to parquet",
    "export STORE OTHER/tables/ --to parquet",
    "export STORE STORE/texts.jsonl --to messages",
    "export STORE file://STORE/tables/ --to parquet",
    "view STORE --out STORE/page.html",
)


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_output_goes_into_a_store(command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    places = {"STORE": tmp_path / "store", "OTHER": tmp_path / "other", "TABLE": tmp_path / "table.jsonl"}
    for place in (places["STORE"], places["OTHER"]):
        store = LogitStore.create(place, make_manifest())
        store.commit_unit("unit-0", 0, [make_sequence("a")], seconds=0, worker="w")
    assert main(["export", str(places["STORE"]), str(places["TABLE"])]) == 0
    before = files(tmp_path)
    for name, place in places.items():
        command = command.replace(name, str(place))
    capfd.readouterr()
    assert main(command.split()) == 2
    error = capfd.readouterr().err
    assert "a store of labels" in error or "is the store itself" in error
    assert files(tmp_path) == before


@pytest.mark.slow
def test_no_new_store_goes_below_another_ones_prefix() -> None:
    """At a URL as on a disk, however deep, from whichever command."""
    with run_dialect("plain") as server:
        options = server.storage_options
        store = LogitStore.create("s3://b/teams/labels", make_manifest(), storage_options=options)
        store.commit_unit("unit-0", 0, [make_sequence("a")], seconds=0, worker="w")
        for place in ("s3://b/teams/labels/sub", "s3://b/teams/labels/shards/a/b"):
            with pytest.raises(StoreExistsError, match=r"lies in s3://b/teams/labels, a store of labels"):
                merge_stores([store], place, storage_options=options)
        for place in ("s3://b/teams/labels2", "s3://b/teams/other/deep/store"):
            assert len(merge_stores([store], place, storage_options=options)) == 1
        assert len(Objects("s3://b/teams/labels", options).list()) == 4


def test_a_place_that_cannot_hold_a_store_is_refused_before_anything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    store.commit_unit("unit-0", 0, [make_sequence("a")], seconds=0, worker="w")
    assert main(["merge", store.uri, "--out", "memory://no-store"]) == 2
    told = capfd.readouterr().err
    assert "memory:// cannot replace an object only if it is unchanged" in told
    assert "to an s3:// server that keeps conditional PUTs" in told
    assert "penumbra store copy" in told
    assert Objects("memory://no-store").list() == []
    assert main(["copy", store.uri, "memory://no-store"]) == 0, "which is the remedy"
    assert [one.record_id for one in LogitStore.open("memory://no-store")] == ["a"]
    Objects("memory://no-store").delete_many(Objects("memory://no-store").list())


def test_a_store_of_another_version_is_one_and_another_programs_manifest_is_not(tmp_path: Path) -> None:
    LogitStore.create(tmp_path / "new", make_manifest())
    manifest = tmp_path / "new/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
    with pytest.raises(StoreExistsError, match=r"the page .*/new/a/b.html lies in .*/new, a store of labels"):
        refuse_in_store(tmp_path / "new/a/b.html", "the page")
    for text in ("{}", "[]", "no JSON", '{"name": "an extension", "format_version": 1}'):
        manifest.write_text(text)
        refuse_in_store(tmp_path / "new", "the page")


def test_the_folder_is_known_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LogitStore.create(tmp_path / "store", make_manifest())
    (tmp_path / "link").symlink_to(tmp_path / "store")
    monkeypatch.chdir(tmp_path / "store")
    for place in (".", "sub", "../store/sub", tmp_path / "link", tmp_path / "link/sub"):
        with pytest.raises(StoreExistsError, match="choose a place outside of it"):
            refuse_in_store(place, "output.folder")


def test_of_a_url_its_own_names_are_compared() -> None:
    with pytest.raises(StoreExistsError, match="lies in s3://b/store, which is the store itself; copy to"):
        refuse_own_place(Objects("s3://b/store"), Objects("s3://b/store/sub"), "copy")
    with pytest.raises(StoreExistsError, match="is the store itself"):
        refuse_own_place(Objects("s3://b/store"), Objects("s3a://b/store/"), "publish")


def test_one_name_on_two_servers_is_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from one server to another was "the store itself"; the server of the options was not asked."""
    with run_dialect("plain") as server, run_dialect("plain") as other:
        here, there = (Objects("s3://b/store", one.storage_options) for one in (server, other))
        refuse_own_place(here, there, "copy")
        assert other.requests, "the folders above were looked for elsewhere"
        with pytest.raises(StoreExistsError, match="is the store itself"):
            refuse_own_place(here, Objects("s3://b/store", server.storage_options), "copy")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}/")
        with pytest.raises(StoreExistsError, match="is the store itself"):
            refuse_own_place(Objects("s3://b/store", {"key": "key", "secret": "secret"}), here, "copy")


@pytest.mark.parametrize("command", ["copy", "publish", "merge --out", "label check"])
def test_nothing_is_written_onto_a_store_by_another_name_of_it(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through a link a copy put the index of its beginning over a living job's."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    commit_units(store, range(2))
    (tmp_path / "link").symlink_to(tmp_path / "store")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if command == "label check":
        with pytest.raises(ConfigError, match="is the store itself"):
            check_responses(store, tmp_path / "link", CheckSettings(command="true", best=1, timeout_sec=1))
    else:
        name, *option = command.split()
        assert main([name, store.uri, *option, str(tmp_path / "link"), "--quiet"]) == 2
        assert "store" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_key_that_may_put_and_not_list_is_told_what_it_lacks(tmp_path: Path, capsys) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    options = tmp_path / "options.json"
    with run_dialect("no lists") as server:
        options.write_text(json.dumps(server.storage_options))
        for command in ("copy", "publish"):
            target = ["s3://b/new", "--out-storage-options", str(options)]
            assert main([command, store.uri, *target, "--quiet"]) == 3
            assert "nothing was written: S3 answers so for what is not there" in capsys.readouterr().err
        assert server.data == {}


def test_an_earlier_store_with_the_name_of_a_file_is_told_how_to_go_on() -> None:
    with pytest.raises(UnsupportedInputError, match=r"store copy s3://b/x.jsonl s3://b/x --with-job`"):
        refuse_file_name("s3://b/x.jsonl")
