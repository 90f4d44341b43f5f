"""Records that are held out: by themselves alone, on one side for good, and looked at once."""

import pytest

from tests.trainer.conftest import NUM_SEQUENCES
from tests.trainer.data.test_dataset import dataset, ids
from trainer.data import sources
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.sources import HeldOut, StoreSpec, record_hash, record_hashes


def test_held_out_records_are_never_trained_on(small_store):
    train = ids(dataset(small_store, held_out=HeldOut(0.3)))
    held_out = ids(dataset(small_store, held_out=HeldOut(0.3, "held_out")))
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(f"r{n}" for n in range(NUM_SEQUENCES))
    assert 0.1 < len(held_out) / NUM_SEQUENCES < 0.5
    assert ids([dataset(small_store, shuffle=False, held_out=HeldOut(0.3))[-1]])[0] in train


def test_the_held_out_part_depends_on_the_record_alone():
    hash_S = record_hashes(f"record {n}" for n in range(4000))
    keeps_S = HeldOut(0.25, "held_out").keeps(hash_S)
    assert hash_S[:99].tolist() == record_hashes(f"record {n}#turn-2" for n in range(99)).tolist()
    assert keeps_S.mean() == pytest.approx(0.25, abs=0.02)
    assert (HeldOut(0.25).keeps(hash_S) != keeps_S).all()
    assert HeldOut(0.5, "held_out").keeps(hash_S)[keeps_S].all()


@pytest.mark.parametrize("side", ["train", "held_out"])
def test_a_record_is_hashed_once(small_store, monkeypatch, side):
    """For which side it is on, and not again for those of this side."""
    hashed = []
    monkeypatch.setattr(sources, "record_hash", lambda name: hashed.append(name) or record_hash(name))
    part = StreamingLogitDataset(small_store, held_out=HeldOut(0.3, side))
    assert 0 < part.num_sequences < NUM_SEQUENCES
    assert sorted(hashed) == sorted(f"r{n}" for n in range(NUM_SEQUENCES))


def test_a_record_that_its_selection_leaves_out_is_not_hashed(small_store, monkeypatch):
    hashed = []
    monkeypatch.setattr(sources, "record_hash", lambda name: hashed.append(name) or record_hash(name))
    StreamingLogitDataset(StoreSpec(str(small_store), where="record_id = r3"), held_out=HeldOut(0.3))
    assert hashed == ["r3"]
