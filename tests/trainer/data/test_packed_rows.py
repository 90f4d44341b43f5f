"""Packing across steps: the rows are a pure function of order and lengths, however they are read."""

import numpy as np
import pytest

from tests.trainer.conftest import NUM_SEQUENCES
from tests.trainer.students import tiny_student, tiny_trainer, weights
from trainer import (
    CollateSettings,
    DistillationCollator,
    LogitDataLoader,
    LossSettings,
    Packing,
    StreamingLogitDataset,
)
from trainer.data.order import EpochOrder, OrderKey
from trainer.data.outlines import Outline
from trainer.data.packed_rows import PackedLine, splits_worth_packing
from trainer.data.sources import HeldOut
from trainer.errors import SettingError
from trainer.hf.checks.processes import check_dataset
from trainer.hf.heads import batch_loss

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
PACKING = Packing(row_tokens=48, buffer_rows=3)


def row_ids(rows):
    return [tuple(sample.sequence.record_id for sample in row) for row in rows]


def dataset(store, **settings):
    return StreamingLogitDataset(
        store, **{"batch_size": 2, "num_splits": 3, "seed": 1, "packing": PACKING} | settings
    )


def test_an_epoch_is_every_sequence_once_in_rows_that_hold_them(small_store):
    reader = dataset(small_store)
    rows = list(reader)
    assert sorted(name for row in row_ids(rows) for name in row) == sorted(
        f"r{n}" for n in range(NUM_SEQUENCES)
    )
    used = [sum(len(sample.sequence.token_ids_T) for sample in row) for row in rows]
    assert max(used) <= 48
    assert len(rows) == reader.epoch_length == len(reader) < NUM_SEQUENCES / 2
    assert row_ids(rows) != row_ids(reader), "another epoch, other rows"


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (3, 1)])
def test_rows_are_the_same_on_any_machines_and_after_any_resume(small_store, world_size, num_workers):
    line = row_ids(dataset(small_store, batch_size=1))
    start = dataset(small_store, batch_size=3)
    loader = LogitDataLoader(start, row_ids, num_workers=0)
    taken = iter(loader)
    seen = [row for _ in range(2) for row in next(taken)]
    ranks = [
        LogitDataLoader(
            dataset(small_store, rank=rank, world_size=world_size), row_ids, num_workers=num_workers
        )
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.load_state_dict(loader.state_dict())
    batches = [list(rank) for rank in ranks]
    for step in range(max(map(len, batches))):
        seen += [row for rank in batches for row in (rank[step] if step < len(rank) else [])]
    assert seen == line


def test_rows_hold_what_the_settings_cut_sequences_to(small_store):
    whole = dataset(small_store).epoch_length
    cut = dataset(small_store, packing=Packing(48, max_tokens=6, buffer_rows=3))
    assert cut.epoch_length < whole
    batch = DistillationCollator(
        CollateSettings(max_length=6, pack_length=48, packed_attention="position_ids", count_tokens=True)
    )(list(cut))
    assert batch["input_ids"].shape[0] == cut.epoch_length
    num_tokens, num_places, _ = batch["token_counts"].tolist()
    assert num_places >= num_tokens > 0.8 * num_places


def test_a_state_of_other_rows_is_refused(small_store):
    state = dataset(small_store).state_dict()
    with pytest.raises(
        SettingError, match=r"was saved with packing=\{'row_tokens': 48.*has None: another order"
    ):
        dataset(small_store, packing=None).load_state_dict(state)
    unpacked = dataset(small_store, packing=None)
    old = {name: value for name, value in unpacked.state_dict().items() if name != "packing"}
    unpacked.load_state_dict(old)


def test_packed_rows_train_as_their_sequences_do_apart(small_store):
    """The rows of a step as they are, and the same sequences each padded to a row of its own."""
    model = tiny_student()
    for batch in LogitDataLoader(dataset(small_store), list):
        losses = [
            batch_loss(model, DistillationCollator(settings)(batch), LossSettings()).loss.item()
            for settings in (
                CollateSettings(pack_length=48, packed_attention="position_ids"),
                CollateSettings(),
            )
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_packed_run_goes_on_exactly(small_store, tmp_path):
    def trainer(folder, **settings):
        train_set = dataset(small_store, held_out=HeldOut(0.2), even=True)
        return tiny_trainer(
            small_store,
            folder,
            batch_size=2,
            train_dataset=train_set,
            collate={"pack_length": 48},
            **settings,
        )

    unbroken = trainer(tmp_path / "a", save_strategy="steps", save_steps=3)
    unbroken.train()
    assert min(entry["fill"] for entry in unbroken.state.log_history if "fill" in entry) > 0.7
    resumed = trainer(tmp_path / "b", model=tiny_student(seed=4))
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert np.array_equal(weights(resumed.model), weights(unbroken.model))


def test_a_collator_of_other_rows_is_refused(small_store, tmp_path):
    with pytest.raises(ValueError, match=r"packs rows of 48 tokens .*the collator has pack_length=32"):
        tiny_trainer(
            small_store,
            tmp_path,
            batch_size=2,
            train_dataset=dataset(small_store),
            collate={"pack_length": 32},
        )
    with pytest.raises(ValueError, match=r"a packed row has .* pack_length=20 is less"):
        DistillationCollator(CollateSettings(pack_length=20, packed_attention="position_ids"))(
            list(dataset(small_store))
        )


def test_a_set_for_evaluation_is_not_packed(small_store, tmp_path):
    with pytest.raises(ValueError, match="eval_dataset has packing, but evaluation pads"):
        tiny_trainer(
            small_store, tmp_path, eval_dataset=dataset(small_store, held_out=HeldOut(0.2, "held_out"))
        )


def outlined(lengths_S):
    lengths_S = np.asarray(lengths_S, dtype=np.int32)
    zeros_S = np.zeros(len(lengths_S), dtype=np.int32)
    return Outline(np.arange(len(lengths_S), dtype=np.int32), lengths_S, *(zeros_S,) * 5)


@pytest.mark.parametrize("num_sequences", [40, 120, 329, 1500])
def test_rows_of_few_labels_are_as_full(num_sequences):
    """In shards as small as those of the demo, where each split had a row or two that were 70 to 88% full."""
    rng = np.random.default_rng(num_sequences)
    stores = [
        [outlined(rng.gamma(2.0, mean / 2, shard) + 8) for _ in range(-(-num_sequences // (2 * shard)))]
        for mean, shard in ((138, 27), (98, 15))
    ]
    lengths = [[len(outline.place_S) for outline in store] for store in stores]
    packing, weights = Packing(4096), [1.0, 1.0]
    assert fill(stores, lengths, splits_worth_packing(stores, weights, packing, 16)) >= 0.95
    assert splits_worth_packing(stores, [100.0, 100.0], packing, 16) == 16, "an epoch of many"


def fill(stores, lengths, num_splits):
    """Share of the places of batches of 8 rows that hold tokens; a batch is as wide as its longest row."""
    order = EpochOrder(OrderKey("digest", 0, 0, num_splits, True), lengths, [1.0] * len(stores))
    line = PackedLine(order, stores, Packing(4096))
    tokens = [
        np.concatenate(
            [
                stores[visit.store][visit.shard].num_tokens_S[
                    order.windows(visit, [visit.length])[0].sequences
                ]
                for visit in split
            ]
        )
        for split in order.splits
    ]
    used = [int(tokens[row.split][list(row.members)].sum()) for row in line.rows(0, line.num_rows)]
    places = sum(
        len(used[first : first + 8]) * max(used[first : first + 8]) for first in range(0, len(used), 8)
    )
    return sum(used) / places


def test_a_state_of_rows_that_were_packed_otherwise_is_refused(small_store):
    """Earlier versions packed each of num_splits, however few rows it had."""
    reader = dataset(small_store, num_splits=5)
    state = reader.state_dict()
    assert state["packed_splits"] == 2
    earlier = {name: value for name, value in state.items() if name != "packed_splits"}
    with pytest.raises(SettingError, match="earlier version, which packed 5 splits where this one packs 2"):
        reader.load_state_dict(earlier)
    reader.load_state_dict(state)
    unpacked = dataset(small_store, packing=None)
    unpacked.load_state_dict({**unpacked.state_dict(), "packed_splits": None})
    earlier = {name: value for name, value in unpacked.state_dict().items() if name != "packed_splits"}
    unpacked.load_state_dict(earlier)


def test_an_epoch_that_gives_some_process_nothing_is_refused(small_store, tmp_path):
    """Its training took no step, and never ended."""
    few = {"rank": 0, "even": True, "batch_size": 1}
    reader = dataset(small_store, **few, world_size=32)
    assert reader.steps_per_epoch == 0
    with pytest.raises(ValueError, match=r"an epoch has \d+ packed rows, fewer than the 32 processes"):
        check_dataset(reader, CollateSettings(pack_length=48), num_processes=32, train_batch_size=1)
    rows = dataset(small_store).epoch_length
    some = dataset(small_store, **few, world_size=rows - 2)
    with pytest.warns(UserWarning, match=f"2 of the {rows} packed rows of an epoch are left out"):
        check_dataset(some, CollateSettings(pack_length=48), num_processes=rows - 2, train_batch_size=1)


@pytest.mark.parametrize("mean_tokens", [98, 138, 600, 1500])
def test_rows_of_4096_tokens_are_at_least_95_percent_full(mean_tokens):
    """Lengths as real answers have them, and those of the demo's stores among them: many short, few long."""
    rng = np.random.default_rng(mean_tokens)
    lengths_S = np.minimum(
        rng.gamma(2.0, mean_tokens / 2, 40_000 // (mean_tokens // 90)).astype(np.int32) + 8, 4096
    )
    outline = outlined(lengths_S)
    order = EpochOrder(OrderKey("digest", 0, 0, 16, True), [[len(lengths_S)]], [1.0])
    line = PackedLine(order, [[outline]], Packing(4096))
    fills = []
    reading = lengths_S[order.windows(order.splits[0][0], [len(lengths_S)])[0].sequences]
    for start in range(0, line.num_rows, 8):
        used = [
            int(reading[list(row.members)].sum()) for row in line.rows(start, min(start + 8, line.num_rows))
        ]
        fills.append((sum(used), len(used) * max(used)))
    assert sum(used for used, _ in fills) == int(lengths_S.sum())
    assert sum(used for used, _ in fills) / sum(places for _, places in fills) >= 0.95
