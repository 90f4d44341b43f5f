"""Which sequences of a store a student was followed on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from logitstore.records import LabeledSequence
from logitstore.store import LogitStore
from logitstore.students.snapshots import FollowedSequence, Snapshots, write_snapshots
from logitstore.viewer import overview
from logitstore.viewer.overview import StoreView
from logitstore.viewer.payload import sequence_payload
from logitstore.viewer.student_view import StudentView
from tests.logitstore.viewer.viewer_records import (
    full_logits,
    manifest_of,
    sequence_of,
    student_rows_of,
)

VOCAB = 60


def store_of(place: Path, seed: int, num_records: int) -> LogitStore:
    """Records `record-0` and so on, whose tokens and label rows hang on the seed."""
    rng = np.random.default_rng(seed)
    sequences = [
        sequence_of(f"record-{i}", rng.integers(0, VOCAB, 8).tolist(), rng, vocab_size=VOCAB, top_k=4)
        for i in range(num_records)
    ]
    store = LogitStore.create(place, manifest_of(VOCAB, 4))
    store.commit_unit("unit", 0, sequences, seconds=1, worker="w")
    return store


def followed_in(store: LogitStore, sequence: LabeledSequence, seed: int) -> FollowedSequence:
    logits_NV = full_logits(np.random.default_rng(seed), sequence.rows.num_rows, VOCAB)
    taken = student_rows_of(logits_NV, sequence.rows, sequence.token_ids_T[1:])
    labels = store.manifest.labels
    return FollowedSequence("elsewhere", sequence.record_id, 0, labels.temperatures, VOCAB, (taken,))


def student_of(folder: Path, followed: list[FollowedSequence]) -> StudentView:
    folder.mkdir()
    write_snapshots(Snapshots((0,), tuple(followed)), folder)
    return StudentView(folder)


def test_records_of_one_id_in_two_stores_are_each_shown_with_their_own(tmp_path: Path) -> None:
    stores = [store_of(tmp_path / f"store-{seed}", seed, 3) for seed in (1, 2)]
    followed = [followed_in(store, store[1], seed) for seed, store in enumerate(stores)]
    student = student_of(tmp_path / "student", followed)
    for store, one in zip(stores, followed, strict=True):
        view = StoreView(store.uri, student=student)
        assert view.followed() == {1: ("record-1", 0)}
        payload = sequence_payload(1, store[1], store.manifest.labels, view.texts, student)
        own = set(map(str, one.snapshots[0].own_token_ids_N.tolist()))
        assert payload["student"] is not None
        assert own <= payload["pieces"].keys()  # type: ignore[union-attr]
    other = store_of(tmp_path / "store-3", 3, 3)
    assert StoreView(other.uri, student=student).followed() == {}, "a record of that id, and other label rows"


def test_followed_sequences_are_in_the_stores_order_and_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "REFRESH_AFTER_SEC", 0.0)
    store = store_of(tmp_path / "store", 1, 12)
    student = student_of(tmp_path / "student", [followed_in(store, store[i], i) for i in (11, 2, 10)])
    view = StoreView(store.uri, student=student)
    _, pages = view.open()
    asked: list[str] = []
    real = pages.find
    monkeypatch.setattr(pages, "find", lambda name, sample: asked.append(name) or real(name, sample))
    for _ in range(3):
        assert list(view.followed()) == [2, 10, 11]
    assert len(asked) == 3
    moved = sequence_of("late", [1] * 8, np.random.default_rng(0), vocab_size=VOCAB, top_k=4)
    store.commit_unit("later", 1, [moved], seconds=1, worker="w")
    assert list(view.followed()) == [2, 10, 11]
    assert len(asked) == 6, "the store has changed"
