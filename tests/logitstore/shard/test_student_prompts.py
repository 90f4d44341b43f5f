"""The optional column of students' prompts: written, read, moved, refused."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logitstore.decoding.tokens import TokenTexts
from logitstore.errors import (
    CorruptManifestError,
    CorruptShardError,
    InvalidLabelsError,
    UnsupportedFormatError,
    UnsupportedInputError,
)
from logitstore.exchange.importing import Origin, import_source
from logitstore.exchange.merge import merge_stores
from logitstore.exchange.npz.export import export_npz
from logitstore.exchange.tables.export import export_table
from logitstore.exchange.tables.reading import read_table
from logitstore.manifest import reading
from logitstore.manifest.fields import STUDENT_PROMPTS, Manifest
from logitstore.records import LabeledSequence
from logitstore.shard import metadata
from logitstore.shard.reader import ShardReader
from logitstore.shard.writer import write_shard
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from logitstore.viewer.payload import sequence_payload
from tests.logitstore.random_labels import make_manifest, make_sequence


def manifest() -> Manifest:
    plain = make_manifest()
    return replace(
        plain, features=(STUDENT_PROMPTS,), labels=replace(plain.labels, extra_columns=(STUDENT_PROMPTS,))
    )


def prompted(name: str, prompt: list[int] | None) -> LabeledSequence:
    """A sequence of 12 tokens of which the first 4 are the prompt."""
    whole = make_sequence(name)
    rows = type(whole.rows)(*(getattr(whole.rows, field)[3:] for field in type(whole.rows).__slots__))
    ids = None if prompt is None else np.array(prompt, np.int32)
    return replace(
        whole,
        prompt_length=4,
        label_start=4,
        rows=rows,
        loss_mask_N=whole.loss_mask_N[3:],
        student_prompt_ids=ids,
    )


SEQUENCES = [prompted("a", [7, 8]), prompted("b", None), prompted("c", [1, 2, 3, 4, 5, 6])]


def same(found: LabeledSequence, wanted: LabeledSequence) -> None:
    assert found.token_ids_T.tolist() == wanted.token_ids_T.tolist()
    assert (found.prompt_length, found.label_start) == (wanted.prompt_length, wanted.label_start)
    np.testing.assert_array_equal(found.rows.token_ids_NK, wanted.rows.token_ids_NK)
    mine, theirs = found.student_prompt_ids, wanted.student_prompt_ids
    assert (mine is None) == (theirs is None)
    if mine is not None and theirs is not None:
        assert mine.tolist() == theirs.tolist()


def make_store(place: Path, sequences: list[LabeledSequence] | None = None) -> LogitStore:
    store = LogitStore.create(place, manifest())
    store.commit_unit("unit", 0, sequences or SEQUENCES, seconds=0.0, worker="test")
    return store


def test_a_shard_gives_the_prompts_back_and_where_they_move_the_rows(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    assert not verify_store(store).errors
    for found, wanted in zip(store.iter_sequences(), SEQUENCES, strict=True):
        same(found, wanted)
    for found, wanted in zip(store.iter_sequences(top_k=2), SEQUENCES, strict=True):
        assert (found.student_prompt_ids is None) == (wanted.student_prompt_ids is None)
    (entry,) = store.shards()
    with store.open_shard(entry) as reader:
        assert reader.student_shifts(0).tolist() == [-2, 0, 2]
        assert sum(reader.column_bytes().values()) == entry.num_bytes
    seen = SEQUENCES[2].for_student()
    assert seen.token_ids_T.tolist() == [1, 2, 3, 4, 5, 6, *SEQUENCES[2].token_ids_T[4:].tolist()]
    assert (seen.prompt_length, seen.label_start) == (6, 6)
    assert SEQUENCES[1].for_student() is SEQUENCES[1]


def test_stores_without_the_feature_have_the_bytes_that_they_had(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    write_shard(buffer, [prompted("a", None)], make_manifest().labels, None)
    assert b"student_prompts" not in buffer.getvalue()
    with pytest.raises(InvalidLabelsError, match="feature 'student_prompts'"):
        write_shard(io.BytesIO(), [prompted("a", [1])], make_manifest().labels, None)


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (prompted("a", []), "at least one token"),
        (prompted("a", [101]), "ids below V"),
        (replace(prompted("a", [1]), prompt_length=6), "rows of the response only"),
    ],
)
def test_prompts_that_no_student_can_have_are_refused(bad: LabeledSequence, rule: str) -> None:
    with pytest.raises(InvalidLabelsError, match=rule):
        write_shard(io.BytesIO(), [bad], manifest().labels, None)


def test_older_readers_refuse_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store")
    (entry,) = store.shards()
    data = store.objects.get(entry.name)
    monkeypatch.setattr(metadata, "KNOWN_FEATURES", frozenset())
    with pytest.raises(UnsupportedFormatError, match="student_prompts"):
        ShardReader(io.BytesIO(data), manifest().labels, None)
    monkeypatch.setattr(reading, "KNOWN_FEATURES", frozenset())
    with pytest.raises(UnsupportedFormatError, match="student_prompts"):
        LogitStore.open(store.uri)


def test_a_shard_of_another_kind_of_store_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    (entry,) = store.shards()
    with pytest.raises(CorruptShardError, match="features"):
        ShardReader(io.BytesIO(store.objects.get(entry.name)), make_manifest().labels, None)
    file = tmp_path / "store" / "manifest.json"
    value = json.loads(file.read_bytes())
    del value["labels"]["extra_columns"]
    file.write_text(json.dumps(value))
    with pytest.raises(CorruptManifestError, match="extra_columns"):
        LogitStore.open(tmp_path / "store")


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_tables_carry_the_prompts(tmp_path: Path, form: str) -> None:
    store = make_store(tmp_path / "store")
    export_table(store, tmp_path / f"table.{form}", form)
    back = import_source(read_table(tmp_path / f"table.{form}"), str(tmp_path / "back"), origin=Origin())
    assert back.manifest.features == (STUDENT_PROMPTS,)
    for found, wanted in zip(back.iter_sequences(), SEQUENCES, strict=True):
        same(found, wanted)


def test_a_capture_without_a_place_for_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedInputError, match="student_prompts"):
        export_npz(make_store(tmp_path / "store"), tmp_path / "capture.npz")


def test_a_merge_with_a_store_without_prompts_keeps_those_that_are_there(tmp_path: Path) -> None:
    first = LogitStore.create(tmp_path / "plain", make_manifest())
    first.commit_unit("unit", 0, [prompted("z", None)], seconds=0.0, worker="test")
    both = merge_stores([first, make_store(tmp_path / "store")], str(tmp_path / "both"))
    for found, wanted in zip(both.iter_sequences(), [prompted("z", None), *SEQUENCES], strict=True):
        same(found, wanted)


def test_the_page_gets_both_prompts() -> None:
    payload = sequence_payload(0, SEQUENCES[0], manifest().labels, TokenTexts())
    assert payload["student_prompt"] == ["⟨7⟩", "⟨8⟩"]
    assert sequence_payload(0, SEQUENCES[1], manifest().labels, TokenTexts())["student_prompt"] is None
