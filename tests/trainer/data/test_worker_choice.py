"""Loader workers that would only decode what another decodes are not begun."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from logitstore.common.store_warning import StoreWarning
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence
from trainer.data import loader as loader_module
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.data.samples import Sample
from trainer.data.worker_choice import useful_workers


def in_turn(shards: int, steps_each: int = 1) -> list[set[int]]:
    """Steps that read one shard each, of so many, in turn."""
    return [{step // steps_each % shards} for step in range(240)]


@pytest.mark.parametrize(
    ("shards", "asked", "cores", "used"),
    [
        (16, 8, 2, 8),  # each worker has two shards of its own
        (16, 8, 8, 8),
        (6, 8, 2, 6),  # eight would each read three of six: every block four times
        (6, 8, 64, 6),
        (7, 8, 8, 7),
        (16, 6, 8, 4),
        (1, 8, 64, 8),  # nothing to divide: each decodes all, and they share the making of batches
        (1, 8, 1, 1),
        (7, 2, 2, 2),
    ],
)
def test_the_workers_among_which_the_shards_divide(shards: int, asked: int, cores: int, used: int) -> None:
    assert useful_workers(in_turn(shards), asked, cores) == used


def test_steps_of_half_a_turn_are_counted_as_they_fall() -> None:
    """Two steps of four sequences for each turn of eight: two neighbours always share a shard."""
    assert useful_workers(in_turn(16, steps_each=2), 8, 8) == 8
    assert useful_workers(in_turn(6, steps_each=2), 8, 2) == 6


def test_small_shards_that_are_read_at_once_are_shared_with_nobody() -> None:
    assert useful_workers([{step} for step in range(240)], 7, 2) == 7
    assert useful_workers([], 7, 2) == 7


def record_ids(samples: Sequence[Sample]) -> list[str]:
    return [sample.sequence.record_id for sample in samples]


def test_the_loader_says_it_and_hands_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "usable_cores", lambda: 2)
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit in range(3):
        sequences = [make_sequence(f"{unit}-{number}", length=3) for number in range(32)]
        store.commit_unit(f"unit-{unit}", unit, sequences, seconds=0, worker="w")

    def loader(num_workers: int) -> LogitDataLoader:
        dataset = StreamingLogitDataset(store.uri, batch_size=8)
        return LogitDataLoader(dataset, record_ids, num_workers=num_workers)

    alone = list(loader(0))
    four = loader(4)
    with pytest.warns(StoreWarning, match="3 of 4 loader workers are used"):
        assert list(four) == alone
    assert four.num_workers == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", StoreWarning)
        assert list(loader(3)) == alone
