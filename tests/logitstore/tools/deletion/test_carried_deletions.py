"""What was deleted from one store does not come back in what is made of it and of others that still have it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from logitstore.__main__ import main
from logitstore.common.store_warning import StoreWarning
from logitstore.errors import InvalidLabelsError, StoreChangedError
from logitstore.exchange.merge import merge_stores
from logitstore.inputs.identity import digest_of
from logitstore.manifest.fields import RECORD_PARTS
from logitstore.records import Reject
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import make_manifest, make_sequence
from tests.logitstore.tools.deletion.deleted import NAMES, left
from trainer.data.dataset import StreamingLogitDataset

REASON = "asked for by letter"


def others(tmp_path: Path, *names: str) -> LogitStore:
    """Another store of the same teacher, and what it rejected."""
    store = LogitStore.create(tmp_path / "others", make_manifest())
    rejects = [Reject("in.jsonl", number, name, "too long", "too_long") for number, name in enumerate(names)]
    store.commit_unit("u", 0, [make_sequence(name) for name in names], rejects, seconds=1, worker="w")
    return store


def deleted(store: LogitStore, *names: str) -> LogitStore:
    delete_records(store, frozenset(names), REASON)
    return store


def says_deleted(store: LogitStore) -> set[str]:
    found = LogitStore.open(store.uri).deletions
    assert {one.reason for one in found.tombstones} <= {REASON}
    return {name for name in ("x", "y", *NAMES) if digest_of(name).hex() in found.records}


@pytest.mark.parametrize("turned", [False, True])
def test_a_merge_leaves_out_what_one_source_deleted(store: LogitStore, tmp_path: Path, turned: bool) -> None:
    deleted(store, NAMES[0], "x")
    sources = [store, others(tmp_path, "x", NAMES[0], "y")]
    with pytest.warns(StoreWarning, match="2 sequences are left out .* deleted"):
        merged = merge_stores(sources[::-1] if turned else sources, str(tmp_path / "merged"))
    assert sorted(left(merged)) == sorted([*NAMES[1:], "y"])
    assert says_deleted(merged) == {NAMES[0], "x"}
    assert "x" not in {reject.record_id for reject in merged.rejects()}
    assert "y" in {reject.record_id for reject in merged.rejects()}
    assert not verify_store(merged).errors
    merged.commit_unit("later", 9, [make_sequence("x")], seconds=0, worker="w")
    assert "x" not in left(merged), "nor is it labeled again"


def test_a_deletion_outlives_a_merge_of_merges(store: LogitStore, tmp_path: Path) -> None:
    first = merge_stores([deleted(store, NAMES[0])], str(tmp_path / "first"))
    with pytest.warns(StoreWarning, match="1 sequence is left out"):
        second = merge_stores([first, others(tmp_path, NAMES[0])], str(tmp_path / "second"))
    assert left(second) == NAMES[1:]


def test_parts_of_a_deleted_record_are_left_out(tmp_path: Path) -> None:
    manifest = dataclasses.replace(make_manifest(), features=(RECORD_PARTS,))
    stores = [LogitStore.create(tmp_path / name, manifest) for name in ("one", "two")]
    stores[0].commit_unit("u", 0, [make_sequence("talk#turn-1")], seconds=0, worker="w")
    stores[1].commit_unit("u", 0, [make_sequence("talk#turn-2"), make_sequence("y")], seconds=0, worker="w")
    deleted(stores[0], "talk")
    with pytest.warns(StoreWarning, match="1 sequence is left out"):
        assert left(merge_stores(stores, str(tmp_path / "merged"))) == ["y"]


def test_a_target_begun_before_the_deletion_is_refused(store: LogitStore, tmp_path: Path) -> None:
    """It may hold what was taken down: units that lie there are not read again."""
    merge_stores([store], str(tmp_path / "merged"))
    deleted(store, NAMES[0])
    with pytest.raises(StoreChangedError, match=r"not say that 1 of .* or by an earlier version, which took"):
        merge_stores([store], str(tmp_path / "merged"))


def test_a_merge_after_the_same_deletion_goes_on(store: LogitStore, tmp_path: Path) -> None:
    deleted(store, NAMES[0])
    first = merge_stores([store], str(tmp_path / "merged")).digest
    again = merge_stores([store], str(tmp_path / "merged"))
    assert (again.digest, len(again.deletion_infos())) == (first, 1)


def test_duplicates_are_refused_as_before(store: LogitStore, tmp_path: Path) -> None:
    deleted(store, NAMES[0])
    with pytest.raises(InvalidLabelsError, match=NAMES[1]):
        merge_stores([store, others(tmp_path, NAMES[1])], str(tmp_path / "merged"))


@pytest.mark.parametrize("deleting", [0, 1])
def test_a_mixture_has_none_of_what_one_teacher_lacks_by_deletion(
    store: LogitStore, tmp_path: Path, deleting: int, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = [store, others(tmp_path, *NAMES)]
    deleted(stores[deleting], *NAMES[:3], NAMES[5])  # a whole unit of the first store, and one more
    out = str(tmp_path / "mixed")
    for _ in range(2):  # the second one says the same of what the first made
        assert main(["mix", *(one.uri for one in stores), "--out", out]) == 0
        said = capsys.readouterr().err
        assert "4 sequences are left out" in said
        assert "only what both teachers labeled" not in said
    mixed = LogitStore.open(out)
    assert [one.record_id for one in mixed] == [NAMES[3], NAMES[4], *NAMES[6:]]
    assert says_deleted(mixed) == {*NAMES[:3], NAMES[5]}
    assert not verify_store(mixed).errors


def test_a_table_that_left_before_the_deletion_comes_back_without(
    store: LogitStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, back = str(tmp_path / "table.parquet"), str(tmp_path / "back")
    assert main(["export", store.uri, "--to", "parquet", table]) == 0
    deleted(store, NAMES[0])
    assert main(["import", "--from", "parquet", table, back, "--like", store.uri]) == 0
    assert "1 sequence is left out" in capsys.readouterr().err
    assert left(LogitStore.open(back)) == NAMES[1:]
    assert says_deleted(LogitStore.open(back)) == {NAMES[0]}


def test_training_says_what_another_store_deleted(store: LogitStore, tmp_path: Path) -> None:
    deleted(store, NAMES[0], "x")
    other = others(tmp_path, "x", NAMES[0], "y")
    dataset = StreamingLogitDataset([store.uri, other.uri])
    with pytest.warns(StoreWarning, match=r"others: 2 sequences that take part .* without_ids"):
        assert dataset.labels_within(None) == 11 * 14
