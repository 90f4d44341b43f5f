"""What a selection names and the store does not have is said, in every command that takes one."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from logitstore.__main__ import main
from logitstore.common.store_warning import StoreWarning
from logitstore.errors import UnsupportedInputError
from logitstore.rows.where import parse_selection, select_ids
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence
from trainer.data.sources import Source, StoreSpec

COMMANDS = {
    "merge": ["merge", "{store}", "--out", "{out}/merged"],
    "cat": ["cat", "{store}"],
    "export": ["export", "{store}", "--to", "jsonl", "{out}/table.jsonl"],
    "export files": ["export", "{store}", "--to", "parquet", "{out}/tables/"],
    "export npz": ["export", "{store}", "--to", "npz", "{out}/capture.npz"],
    "view": ["view", "{store}", "--out", "{out}/page.html"],
}


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    """Two units: a has no flag, b is truncated, c truncated and repeated."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    marked = [("a", ()), ("b", ("truncated",)), ("c", ("truncated", "repeated"))]
    sequences = [replace(make_sequence(name), flags=flags) for name, flags in marked]
    store.commit_unit("unit-0", 0, sequences[:2], seconds=0, worker="w")
    store.commit_unit("unit-1", 1, sequences[2:], seconds=0, worker="w")
    return store


def told(command: str, store: LogitStore, tmp_path: Path, capfd: pytest.CaptureFixture[str], *more: str):
    words = [word.format(store=store.uri, out=tmp_path) for word in COMMANDS[command]]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([*words, *more]) == 0
    return capfd.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_a_selection_names_and_nobody_has(
    command: str, store: LogitStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ids, others = tmp_path / "ids.txt", tmp_path / "others.txt"
    ids.write_text("a\nb\nc\nzebra\n")
    others.write_text("yak\n")
    where = "not (flags has trunctaed or finish_reason = nowhere)"
    error = told(
        command, store, tmp_path, capfd, "--where", where, "--ids", str(ids), "--without-ids", str(others)
    )
    assert "flags 'trunctaed', which no sequence that was looked at has" in error
    assert "did you mean 'truncated'? there are: repeated, truncated" in error
    assert "finish_reason 'nowhere'" in error
    assert f"1 of 4 record ids in {ids} are of no sequence that was looked at: 'zebra'" in error
    assert f"1 of 1 record ids in {others}" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_a_selection_whose_names_all_occur_is_no_matter(
    command: str, store: LogitStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("a\nb\n")
    where = "flags has truncated and flags lacks repeated and unit_id in (unit-0, unit-1)"
    error = told(command, store, tmp_path, capfd, "--where", where, "--ids", str(tmp_path / "ids.txt"))
    assert "no sequence that was looked at" not in error


@pytest.mark.parametrize("command", COMMANDS)
def test_where_no_sequence_has_any_it_is_said_without_a_false_count(
    command: str, store: LogitStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Commands look at a sequence more than once: for the disk's room, for shared records, for its labels."""
    error = told(command, store, tmp_path, capfd, "--where", "not segments has tool")
    assert "segments 'tool', which no sequence that was looked at has; none of them has any segments" in error


def test_a_cat_that_stops_early_does_not_speak_of_what_it_has_not_seen(
    store: LogitStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert told("cat", store, tmp_path, capfd, "--where", "flags lacks repeated", "--limit", "1") == ""
    assert "repeated" not in told("cat", store, tmp_path, capfd, "--where", "flags lacks repeated")


def test_training_says_it_of_its_store(store: LogitStore, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("a\nzebra\n")
    spec = StoreSpec(store.uri, where="flags has trunctaed or unit_id = unit-7", ids=ids)
    with pytest.warns(StoreWarning) as seen:
        Source(spec.uri, selection=spec.selection())
    texts = [str(one.message) for one in seen]
    assert all(text.startswith(f"{store.uri}: ") for text in texts)
    assert ["'trunctaed'" in texts[0], "unit_id 'unit-7'" in texts[1], "1 of 2" in texts[2]] == [True] * 3
    assert len(texts) == 3


def test_of_ids_that_the_index_knows_only_their_blocks_are_read_and_the_rest_is_counted(
    store: LogitStore, tmp_path: Path
) -> None:
    store.compact()
    for unit in range(2, 6):
        sequences = [make_sequence(f"{unit}-{number}") for number in range(8)]
        store.commit_unit(f"unit-{unit}", unit, sequences, seconds=0, worker="w")
    store.compact()
    ids = tmp_path / "ids.txt"
    ids.write_text("3-1\nzebra\n")
    selection = select_ids(ids)
    assert [one.record_id for one in selection.sequences(LogitStore.open(store.uri))] == ["3-1"]
    [sentence] = selection.unmet.sentences()
    assert sentence == f"1 of 2 record ids in {ids} are of no sequence that was looked at: 'zebra'"


@pytest.mark.parametrize(
    ("where", "hint"),
    [
        ("flgas has truncated", "did you mean 'flags'"),
        ("segments has reasonning", "did you mean 'reasoning'"),
    ],
)
def test_a_misspelt_field_or_segment_is_refused_with_the_nearest_name(where: str, hint: str) -> None:
    with pytest.raises(UnsupportedInputError, match=hint):
        parse_selection(where)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_selection_of_nothing_is_said(
    command: str, store: LogitStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "no sequence is selected" in told(command, store, tmp_path, capfd, "--where", "num_tokens > 1000")
    assert told("cat", store, tmp_path, capfd, "--where", "num_tokens > 1") == ""


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "view"])
def test_a_larger_k_than_is_stored_is_said(
    command: str, store: LogitStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    error = told(command, store, tmp_path, capfd, "--top-k", "9")
    assert f"--top-k is 9, and {store.uri} has K=8: all of it is taken" in error
    assert "--top-k" not in told("cat", store, tmp_path, capfd, "--top-k", "8")
