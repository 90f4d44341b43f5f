"""Stores are merged and selected from; targets that hold other labels are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from logitstore.errors import InvalidLabelsError, StoreChangedError, UnsupportedInputError
from logitstore.exchange import importing
from logitstore.exchange.importing import Origin, import_source
from logitstore.exchange.merge import merge_stores
from logitstore.exchange.npz.export import export_npz
from logitstore.exchange.npz.reading import read_npz
from logitstore.publishing.card import CardSettings, Contents, dataset_card
from logitstore.rows.where import parse_selection
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.logitstore.random_labels import make_manifest, make_sequence


def test_merge_and_select(store: LogitStore, tmp_path: Path) -> None:
    other = LogitStore.create(tmp_path / "other", make_manifest(12))
    other.commit_unit("u", 0, [make_sequence("z", top_k=12)], seconds=0, worker="w")
    merged = merge_stores([store, other], str(tmp_path / "merged"))
    assert merged.manifest.labels.top_k == 12
    names = [sequence.record_id for sequence in merged.iter_sequences()]
    assert names == [*(f"record-{index}" for index in range(6)), "z"]
    first = next(merged.iter_sequences())
    assert first.rows.count_N.tolist() == [8] * 11, "rows of the smaller store stay as they are"
    np.testing.assert_array_equal(first.rows.token_ids_NK[:, :8], make_sequence("record-0").rows.token_ids_NK)
    assert verify_store(merged).problems == []
    some = parse_selection("record_id >= record-1 and record_id < 'record-4' and num_tokens <= 12")
    selected = merge_stores([merged], str(tmp_path / "selected"), selection=some)
    assert [sequence.record_id for sequence in selected.iter_sequences()] == [
        "record-1",
        "record-2",
        "record-3",
    ]
    with pytest.raises(InvalidLabelsError, match="record 'record-0'"):
        merge_stores([store, merged], str(tmp_path / "twice"))
    stranger = LogitStore.create(tmp_path / "stranger", make_manifest(model="other"))
    with pytest.raises(StoreChangedError, match="only stores of one teacher"):
        merge_stores([store, stranger], str(tmp_path / "mixed"))


@pytest.mark.parametrize(("field", "value"), [("dtype", "bfloat16_float32_sums"), ("quantization", "fp8")])
def test_labels_of_another_precision_are_not_merged(
    store: LogitStore, tmp_path: Path, field: str, value: str
) -> None:
    manifest = make_manifest()
    teacher = dataclasses.replace(manifest.teacher, **{field: value})
    other = LogitStore.create(tmp_path / "other", dataclasses.replace(manifest, teacher=teacher))
    with pytest.raises(StoreChangedError, match=rf"{value}.*only stores of one teacher, in one precision"):
        merge_stores([store, other], str(tmp_path / "mixed"))


def test_all_engines_that_ran_the_teacher_are_named(store: LogitStore, tmp_path: Path) -> None:
    """A mass of an import is not exact, and the card of both together must not say so."""
    manifest = make_manifest()
    teacher = dataclasses.replace(manifest.teacher, engine_version="0.33.0", capture="import")
    other = LogitStore.create(tmp_path / "other", dataclasses.replace(manifest, teacher=teacher))
    other.commit_unit("u", 0, [make_sequence("z")], seconds=0, worker="w")
    merged = merge_stores([store, other], str(tmp_path / "merged"))
    found = merged.manifest.teacher
    assert (found.engine, found.engine_version, found.capture) == (
        "vllm",
        "0.32.0 + 0.33.0",
        "in_engine + import",
    )
    card = dataset_card(merged.manifest, Contents.of(list(merged.shards()), 0), CardSettings())
    assert "exact mass" not in card


def test_a_target_begun_with_other_labels_is_refused(
    store: LogitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command goes on; another selection or a changed source must not keep what is there."""
    monkeypatch.setattr(importing, "UNIT_ROWS", 20)  # a sequence a unit
    target = str(tmp_path / "target")
    digest = merge_stores([store], target).digest
    assert merge_stores([store], target).digest == digest
    for text, message in (
        ("record_id != 'record-0'", r"unit index 0 is merged-000000-\w+ in the store"),
        ("unit_index = 0", "holds 3 units of another source or selection"),
    ):
        with pytest.raises(StoreChangedError, match=message):
            merge_stores([store], target, selection=parse_selection(text))
    assert LogitStore.open(target).digest == digest

    path = tmp_path / "labels.npz"
    export_npz(store, path)
    origin = Origin()
    digest = import_source(read_npz(path), str(tmp_path / "imported"), origin=origin).digest
    assert import_source(read_npz(path), str(tmp_path / "imported"), origin=origin).digest == digest
    export_npz(store, path, selection=parse_selection("unit_index = 1"))
    with pytest.raises(StoreChangedError, match="unit index 0 is npz-000000"):
        import_source(read_npz(path), str(tmp_path / "imported"), origin=origin)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nosuch = 1", "knows no field 'nosuch'"),
        ("num_tokens < many", "it is an integer"),
        ("record_id", "cannot read 'record_id'"),
        ("record_id = a or or", "cannot read 'or'"),
        ("(record_id = a", "cannot read ''"),
        ("record_id in a, b", "cannot read 'record_id in a"),
        ("record_id in (a", "cannot read 'record_id in"),
        ("record_id = a)", r"cannot read '\)'"),
        ("flags in (a)", "write flags has a or"),
        ("hash < some", "a number of 0 to 1"),
        ("not " * 60 + "record_id = a", "more than 50 brackets"),
        ("((" * 60, "more than 50 brackets"),
        ("record_id = a and", "cannot read ''"),
    ],
)
def test_each_bad_selection_has_its_message(text: str, message: str) -> None:
    with pytest.raises(UnsupportedInputError, match=message):
        parse_selection(text)


def test_selection_by_unit_reads_no_other(store: LogitStore) -> None:
    Path(store.uri, store.shards()[0].name).write_bytes(b"broken")
    names = [item.record_id for item in parse_selection("unit_index = 1").sequences(store)]
    assert names == ["record-3", "record-4", "record-5"]
    assert json.dumps(names)
