"""A store is purged while a training reads it: what is said, from the loader's workers too."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitstore.errors import ObjectNotFoundError
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from logitstore.tools.purge import purge
from tests.logitstore.random_labels import commit_units, make_manifest
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.errors import GuardError


@pytest.fixture
def store(tmp_path: Path) -> LogitStore:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    commit_units(store, range(20))
    return store


def loader(store: LogitStore, num_workers: int, settings: CollateSettings) -> LogitDataLoader:
    dataset = StreamingLogitDataset(store.uri, num_splits=1, batch_size=3)
    return LogitDataLoader(dataset, DistillationCollator(settings), num_workers=num_workers)


def remove_some(store: LogitStore) -> None:
    delete_records(store, frozenset(f"record-{3 * unit}" for unit in range(20)), "asked for")
    purge(store)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_purge_under_a_training_is_told_in_a_sentence(store: LogitStore, num_workers: int) -> None:
    batches = iter(loader(store, num_workers, CollateSettings()))
    next(batches)
    remove_some(store)
    with pytest.raises(ObjectNotFoundError, match=r"is gone; run .* start the training, again") as raised:
        list(batches)
    assert str(raised.value).startswith(f"{store.uri}: the shard shards/")
    assert "Traceback" not in str(raised.value)


def test_a_sequence_by_number_of_a_shard_that_is_gone(store: LogitStore) -> None:
    dataset = StreamingLogitDataset(store.uri)
    remove_some(store)
    with pytest.raises(ObjectNotFoundError, match="start the training, again"):
        dataset[0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_the_collator_refuses_in_a_worker_is_a_sentence_too(store: LogitStore, num_workers: int) -> None:
    with pytest.raises(GuardError, match=r"^record .* has the token id") as raised:
        list(loader(store, num_workers, CollateSettings(student_vocab_size=2)))
    assert "Traceback" not in str(raised.value)
