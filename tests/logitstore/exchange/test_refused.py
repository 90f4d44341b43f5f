"""A command that makes a store and is refused leaves no store behind, so its place can be used again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from logitstore.__main__ import main
from logitstore.exchange import merge
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence


def make_store(path: Path, *names: str) -> LogitStore:
    store = LogitStore.create(path, make_manifest())
    for unit, name in enumerate(names):
        store.commit_unit(f"unit-{unit}", unit, [make_sequence(name)], seconds=0, worker="w")
    return store


def test_a_merge_of_stores_that_share_a_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitstore.exchange.importing.UNIT_ROWS", 11)
    make_store(tmp_path / "one", "a", "b", "c")
    make_store(tmp_path / "two", "d", "e", "b")
    words = ["merge", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "both")]
    assert main(words) == 2
    assert "record 'b' (sample 0) is in" in capfd.readouterr().err
    assert not (tmp_path / "both").exists()
    assert main([*words, "--where", "record_id != b"]) == 0
    assert sorted(one.record_id for one in LogitStore.open(tmp_path / "both")) == ["a", "c", "d", "e"]


def test_a_merge_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "one", "a", "b")
    monkeypatch.setattr("logitstore.objects.room.free_bytes", lambda uri: 10)
    assert main(["merge", str(tmp_path / "one"), "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_a_merge_that_goes_on_needs_room_for_the_rest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_store(tmp_path / "one", "a", "b")
    asked: list[int] = []
    monkeypatch.setattr(merge, "require_room", lambda uri, num_bytes, *_: asked.append(num_bytes))
    for _ in range(2):
        assert main(["merge", str(tmp_path / "one"), "--out", str(tmp_path / "new")]) == 0
    assert asked[0] == int(one.shards().column("num_bytes").sum())
    assert asked[1] < asked[0] // 2


def test_a_mixture_of_stores_that_do_not_hold_the_same(tmp_path: Path) -> None:
    make_store(tmp_path / "one", "a", "b")
    make_store(tmp_path / "two", "b")
    words = ["mix", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "both")]
    assert main(words) == 2
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("place", ["labels", "labels.xlsx", "s3://bucket/tables", "tables/"])
def test_an_export_whose_form_nothing_says(
    place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "one", "a")
    assert main(["export", str(tmp_path / "one"), place]) == 2
    assert f"no form is named by the ending of {place}; give --to (npz, parquet," in capfd.readouterr().err


def test_an_import_of_what_cannot_be_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "one", "a")
    table = tmp_path / "table.jsonl"
    assert main(["export", store.uri, "--to", "jsonl", str(table)]) == 0
    head, line = table.read_text().splitlines()
    table.write_text(f"{head}\n{line.replace('prompt_length', 'prompt')}\n")
    assert main(["import", "--from", "jsonl", str(table), str(tmp_path / "new")]) == 2
    assert "is not a sequence of a store's table" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_another_store_at_the_place_is_refused_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "one", "a")
    make_store(tmp_path / "two", "a")
    manifest = replace(make_manifest(), input=replace(make_manifest().input, uri="other.jsonl"))
    LogitStore.create(tmp_path / "there", manifest)
    words = ["merge", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "there")]
    assert main(words) == 2
    assert "already holds another store" in capfd.readouterr().err
