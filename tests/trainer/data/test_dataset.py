"""What the dataset promises: complete epochs in one order, exact places, refusals instead of surprises."""

import itertools
import pickle
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from logitstore.codec import loops
from logitstore.common.store_warning import StoreWarning
from logitstore.errors import StoreChangedError
from logitstore.store import LogitStore
from tests.trainer.conftest import NUM_SEQUENCES
from tests.trainer.stores import label_spec, make_store
from trainer.batch.collate import DistillationCollator
from trainer.batch.collate_settings import CollateSettings
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader
from trainer.data.prefetch import run_ahead
from trainer.data.sources import StoreSpec

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def ids(samples):
    return [sample.sequence.record_id for sample in samples]


def dataset(store, **settings):
    given: dict[str, Any] = {"batch_size": 4, "num_splits": 3, "seed": 1, **settings}
    return StreamingLogitDataset(store, **given)


def test_an_epoch_is_every_sequence_once_and_the_next_epoch_another_order(small_store):
    reader = dataset(small_store)
    first, second = ids(reader), ids(reader)
    assert sorted(first) == sorted(second) == sorted(f"r{n}" for n in range(NUM_SEQUENCES))
    assert first != second
    assert first != sorted(first, key=lambda name: int(name[1:]))
    assert len(reader) == NUM_SEQUENCES
    assert reader.epoch == 1


def test_unshuffled_is_storage_order_and_indexing_agrees(small_store):
    reader = dataset(small_store, shuffle=False)
    assert ids(reader) == [f"r{n}" for n in range(NUM_SEQUENCES)]
    assert ids([reader[0], reader[30], reader[-1]]) == ["r0", "r30", f"r{NUM_SEQUENCES - 1}"]
    with pytest.raises(IndexError, match=f"sequence {NUM_SEQUENCES} of {NUM_SEQUENCES}"):
        reader[NUM_SEQUENCES]


def test_sequences_are_those_of_the_store(small_store):
    stored = {sequence.record_id: sequence for sequence in LogitStore.open(small_store).iter_sequences()}
    for sample in dataset(small_store):
        original = stored[sample.sequence.record_id]
        assert np.array_equal(sample.sequence.token_ids_T, original.token_ids_T)
        assert np.array_equal(sample.sequence.rows.logits_NK, original.rows.logits_NK)
        assert np.array_equal(sample.sequence.rows.log_tail_mass_NM, original.rows.log_tail_mass_NM)


def test_fewer_entries_move_their_mass_to_the_tail(small_store):
    whole = {sample.sequence.record_id: sample.sequence.rows for sample in dataset(small_store)}
    for sample in dataset(small_store, top_k=3):
        cut, full = sample.sequence.rows, whole[sample.sequence.record_id]
        assert cut.token_ids_NK.shape[1] == 3
        moved = np.exp(full.logits_NK[:, 3:] - full.logsumexp_NM[:, :1]).sum(1) + np.exp(
            full.log_tail_mass_NM[:, 0]
        )
        assert np.allclose(np.exp(cut.log_tail_mass_NM[:, 0]), moved, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("loader_class", [DataLoader, StatefulDataLoader, LogitDataLoader])
def test_every_loader_gives_the_same_batches(small_store, loader_class, num_workers):
    line = ids(dataset(small_store))
    expected = [line[start : start + 4] for start in range(0, len(line), 4)]
    source = dataset(small_store)
    if loader_class is LogitDataLoader:
        loader = LogitDataLoader(source, ids, num_workers=num_workers)
    else:
        loader = loader_class(source, collate_fn=ids, num_workers=num_workers, batch_size=4)
    assert list(loader) == expected
    assert len(loader) == len(expected)


def refusal(samples):
    """What the collator says against a batch; raised in a worker, torch would take ten seconds to stop."""
    try:
        DistillationCollator(CollateSettings())(samples)
    except ValueError as error:
        return str(error)
    return ""


def test_a_batch_size_that_is_not_the_datasets_is_refused_with_workers(small_store):
    loader = DataLoader(dataset(small_store, batch_size=1), batch_size=4, collate_fn=refusal, num_workers=2)
    assert "give StreamingLogitDataset the DataLoader's batch_size (4)" in next(iter(loader))


@pytest.mark.parametrize(("load_after", "expected"), [(1, True), (10**9, False)])
def test_workers_need_not_load_the_compiled_loops_for_a_long_epoch(
    small_store, monkeypatch, load_after, expected
):
    monkeypatch.setattr(loops, "LOAD_AFTER_ENTRIES", load_after)
    monkeypatch.setattr(loops, "_entries_read", 0)
    loops.compiled_loops.cache_clear()
    loader = LogitDataLoader(dataset(small_store), ids, num_workers=1)
    assert sorted(itertools.chain(*loader)) == sorted(f"r{n}" for n in range(NUM_SEQUENCES))
    assert bool(loops.compiled_loops.cache_info().currsize) == expected


def test_entries_of_an_epoch_are_those_that_are_read(small_store):
    num_entries = sum(sample.sequence.rows.logits_NK.size for sample in dataset(small_store))
    assert dataset(small_store).num_entries == num_entries
    assert dataset(small_store, top_k=2, rank=1, world_size=4).num_entries == num_entries // 16
    assert dataset(StoreSpec(str(small_store), weight=2.5)).num_entries == int(2.5 * num_entries)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_place_is_that_of_the_consumer_not_of_the_workers(small_store, num_workers):
    loader = LogitDataLoader(dataset(small_store), ids, num_workers=num_workers)
    for number, _ in enumerate(itertools.islice(loader, 5), start=1):
        assert loader.state_dict()["consumed"] == 4 * number


@pytest.mark.slow
@pytest.mark.parametrize("stop", [0, 1, 7, 14, 15])
@pytest.mark.parametrize(("workers", "later_workers"), [(0, 3), (3, 0), (2, 1)])
def test_resume_with_other_workers_repeats_and_misses_nothing(small_store, stop, workers, later_workers):
    whole = list(
        itertools.chain.from_iterable(ids(dataset_epoch) for dataset_epoch in two_epochs(small_store))
    )
    loader = LogitDataLoader(dataset(small_store), ids, num_workers=workers)
    seen = [name for batch in itertools.islice(loader, stop) for name in batch]
    later = LogitDataLoader(dataset(small_store), ids, num_workers=later_workers)
    later.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
    seen += [name for batch in later for name in batch]
    if len(seen) < len(whole):
        seen += [name for batch in later for name in batch]
    assert seen[: len(whole)] == whole


def two_epochs(store):
    reader = dataset(store)
    yield list(reader)
    yield list(reader)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchdata_resumes_and_its_state_loads_under_any_topology(small_store, num_workers):
    line = ids(dataset(small_store))

    def make():
        return StatefulDataLoader(dataset(small_store), batch_size=4, collate_fn=ids, num_workers=num_workers)

    for stop in (1, 5, 14, 15):  # of 15 steps: at the end some workers are done, then all
        loader = make()
        iterator = iter(loader)
        seen = [name for _ in range(stop) for name in next(iterator)]
        state = loader.state_dict()
        same = make()
        same.load_state_dict(state)
        assert seen + [name for batch in same for name in batch] == line
        elsewhere = dataset(small_store, batch_size=2)
        elsewhere.load_state_dict(state)
        assert (elsewhere.epoch, elsewhere.consumed) == ((0, 4 * stop) if stop < 15 else (1, 0))
        assert seen[: 4 * stop] + (ids(elsewhere) if stop < 15 else []) == line


def test_plain_loader_with_workers_is_tracked(small_store):
    reader = dataset(small_store)
    loader = DataLoader(reader, batch_size=4, collate_fn=ids, num_workers=2)
    for _ in itertools.islice(reader.track(loader), 3):
        pass
    assert reader.state_dict()["consumed"] == 12


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_each_step_in_the_global_order(small_store, world_size):
    line = ids(dataset(small_store))
    steps = [
        list(LogitDataLoader(dataset(small_store, rank=rank, world_size=world_size), ids))
        for rank in range(world_size)
    ]
    together = [
        name for step in itertools.zip_longest(*steps, fillvalue=[]) for part in step for name in part
    ]
    assert together == line
    assert [len(dataset(small_store, rank=rank, world_size=world_size)) for rank in range(world_size)] == [
        sum(map(len, rank_steps)) for rank_steps in steps
    ]


def test_even_ranks_all_take_the_same_number_of_steps(tmp_path):
    make_store(tmp_path / "s", (17,))
    counts = {
        even: [
            len(list(LogitDataLoader(dataset(tmp_path / "s", rank=rank, world_size=4, even=even), ids)))
            for rank in range(4)
        ]
        for even in (True, False)
    }
    assert counts == {True: [1, 1, 1, 1], False: [1, 1, 1, 2]}


def test_replicated_ranks_read_the_same(small_store):
    reads = [ids(dataset(small_store, rank=rank, world_size=4, replication=2)) for rank in range(4)]
    assert reads[0] == reads[1]
    assert reads[2] == reads[3]
    assert sorted(reads[0] + reads[2]) == sorted(ids(dataset(small_store)))


def test_set_epoch_keeps_the_place_within_the_epoch(small_store):
    reader = dataset(small_store)
    list(itertools.islice(LogitDataLoader(reader, ids), 3))
    reader.set_epoch(0)
    assert reader.consumed == 12
    reader.set_epoch(2)
    assert (reader.epoch, reader.consumed) == (2, 0)
    assert reader.steps_left == len(LogitDataLoader(reader, ids))


def test_a_loaded_state_is_not_lost_to_a_loader_that_counts_epochs_from_zero(small_store):
    """accelerate calls set_epoch(0) at the first iteration after a resume: data of epoch 0, once more."""
    reader = dataset(small_store)
    list(itertools.islice(LogitDataLoader(reader, ids), 15))
    later = dataset(small_store)
    later.load_state_dict(reader.state_dict())
    assert (later.epoch, later.consumed) == (1, 0), "a finished epoch is not begun again"
    with pytest.raises(ValueError, match=r"call its set_epoch\(1\) before iterating"):
        later.set_epoch(0)
    later.set_epoch(1)
    assert ids(later) == ids(itertools.islice(reader, NUM_SEQUENCES))
    later.set_epoch(0)
    assert ids(later) == ids(dataset(small_store))


def test_weights_and_several_stores(tmp_path, small_store):
    make_store(tmp_path / "other", (10,), prefix="o", seed=5)
    mixed = dataset([StoreSpec(str(small_store), 2.0), StoreSpec(str(tmp_path / "other"), 0.5)])
    read = ids(mixed)
    assert mixed.epoch_length == len(read) == 2 * NUM_SEQUENCES + 5
    assert {read.count(f"r{n}") for n in range(NUM_SEQUENCES)} == {2}
    assert len({name for name in read if name[0] == "o"}) == 5


def test_a_changed_store_is_refused(tmp_path):
    store = make_store(tmp_path / "s", (5, 5))
    state = dataset(tmp_path / "s").state_dict()
    other = make_store(tmp_path / "other", (1,), prefix="new")
    store.commit_unit("late", 7, list(other.iter_sequences()), seconds=0.0, worker="test")
    with pytest.raises(StoreChangedError, match="shards were added or removed"):
        dataset(tmp_path / "s").load_state_dict(state)


@pytest.mark.parametrize("change", [{"seed": 9}, {"num_splits": 5}, {"shuffle": False}])
def test_a_state_of_another_order_is_refused(small_store, change):
    (name,) = change
    with pytest.raises(ValueError, match=f"Construct the dataset with {name}="):
        dataset(small_store, **change).load_state_dict(dataset(small_store).state_dict())


def test_a_state_that_is_none_is_refused_instead_of_starting_from_zero(small_store):
    with pytest.raises(ValueError, match="no state of a StreamingLogitDataset"):
        dataset(small_store).load_state_dict({"epoch": 1})


def test_top_k_beyond_the_store_is_refused(small_store):
    with pytest.raises(ValueError, match=r"top_k=9 must lie in 1..8"):
        dataset(small_store, top_k=9)


def test_an_impossible_topology_is_refused(small_store):
    with pytest.raises(ValueError, match="belong together"):
        dataset(small_store, rank=1)
    with pytest.raises(ValueError, match=r"world_size=4 must be a multiple of replication=3"):
        dataset(small_store, rank=0, world_size=4, replication=3)
    with pytest.raises(ValueError, match=r"rank=2 must lie in \[0, world_size=2\)"):
        dataset(small_store, rank=2, world_size=2)


def test_an_error_in_the_background_is_raised_where_it_is_read(tmp_path):
    make_store(tmp_path / "s", (8, 8))
    reader = dataset(tmp_path / "s")
    next(iter(reader))
    for shard in (tmp_path / "s" / "shards").iterdir():
        shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"\.arrow of unit unit-\d is gone"):
        list(reader)


def test_what_runs_ahead_may_be_closed_by_its_own_thread():
    """As where garbage is collected there that holds the iterator."""
    taken, closed, errors = threading.Event(), threading.Event(), []

    def produce():
        yield 1
        taken.wait(20)
        try:
            ahead.close()
        except RuntimeError as error:  # a thread cannot wait for its own end
            errors.append(error)
        closed.set()

    ahead = run_ahead(produce, depth=2)
    assert next(ahead) == 1
    taken.set()
    assert closed.wait(20)
    assert errors == []


def test_running_ahead_stops_with_its_consumer():
    made = []

    def produce():
        for number in itertools.count():
            made.append(number)
            yield number

    others = set(threading.enumerate())
    ahead = run_ahead(produce, depth=2)
    assert [next(ahead), next(ahead)] == [0, 1]
    ahead.close()
    assert len(made) <= 6
    assert set(threading.enumerate()) <= others


def test_spec_of_every_sample_is_its_stores(tmp_path, small_store):
    make_store(tmp_path / "wide", (5,), spec=label_spec(vocab_size=128, top_k=16), prefix="w")
    for sample in dataset([small_store, tmp_path / "wide"]):
        assert sample.labels.top_k == (16 if sample.sequence.record_id[0] == "w" else 8)


def test_files_of_ids_choose_the_sequences_of_training(small_store, tmp_path):
    wanted = tmp_path / "ids.txt"
    wanted.write_text("r1\nr3\nr5\nnever labeled\n")
    some = dataset(StoreSpec(str(small_store), ids=wanted, where="record_id != r3"))
    assert sorted(ids(some)) == ["r1", "r5"]
    others = dataset(StoreSpec(str(small_store), without_ids=wanted))
    assert sorted(ids(others)) == sorted({f"r{n}" for n in range(NUM_SEQUENCES)} - {"r1", "r3", "r5"})
    parts = [
        sorted(ids(dataset(StoreSpec(str(small_store), where=f"hash {sign} 0.5")))) for sign in ("<", ">=")
    ]
    assert sorted(parts[0] + parts[1]) == sorted(f"r{n}" for n in range(NUM_SEQUENCES))
    digest = some.digest
    wanted.write_text("r5\nr3\nnever labeled\nr1\n")
    assert dataset(StoreSpec(str(small_store), ids=wanted, where="record_id != r3")).digest == digest
    wanted.write_text("r1\n")
    assert dataset(StoreSpec(str(small_store), ids=wanted, where="record_id != r3")).digest != digest


def test_a_part_of_an_unshuffled_store_is_said_to_be_the_same_in_every_epoch(tmp_path):
    """The weight says "another half every epoch"; in order of storage there is only the first."""
    make_store(tmp_path / "s", (8, 8))
    with pytest.warns(StoreWarning, match=r"weight 0.5 of .* the same first sequences in every epoch"):
        dataset = StreamingLogitDataset(StoreSpec(str(tmp_path / "s"), 0.5), shuffle=False)
    first, second = ([sample.sequence.record_id for sample in dataset] for _ in range(2))
    assert first == second
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StreamingLogitDataset(StoreSpec(str(tmp_path / "s"), 2.0), shuffle=False)
        StreamingLogitDataset(StoreSpec(str(tmp_path / "s"), 0.5))
