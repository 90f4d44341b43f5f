"""The line of sequences: complete, reproducible, mixed, and cut without loss for every topology."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.order import GROUP, EpochOrder, OrderKey, rank_slice


def key(seed=0, epoch=0, num_splits=4, shuffle=True, digest="d"):
    return OrderKey(digest=digest, seed=seed, epoch=epoch, num_splits=num_splits, shuffle=shuffle)


def line(order: EpochOrder, start=0, stop=None, blocks_of=lambda visit: [visit.length]):
    """Every (store, shard, sequence) of a part of the line, through the same calls a reader makes."""
    for run in order.runs(start, order.num_sequences if stop is None else stop):
        for place in range(run.start, run.start + run.count):
            index, within = order.visit_at(run.split, place)
            visit = order.splits[run.split][index]
            sequences = np.concatenate([w.sequences for w in order.windows(visit, blocks_of(visit))])
            yield visit.store, visit.shard, int(sequences[within])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=9), min_size=1, max_size=3),
    num_splits=st.integers(1, 12),
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_line_holds_every_sequence_once(lengths, num_splits, seed, shuffle):
    total = sum(map(sum, lengths))
    if not total:
        with pytest.raises(ValueError, match="no sequence is left"):
            EpochOrder(key(seed, 0, num_splits, shuffle), lengths, [1.0] * len(lengths))
        return
    order = EpochOrder(key(seed, 0, num_splits, shuffle), lengths, [1.0] * len(lengths))
    everything = [
        (store, shard, sequence)
        for store, shards in enumerate(lengths)
        for shard, length in enumerate(shards)
        for sequence in range(length)
    ]
    read = list(line(order))
    assert sorted(read) == everything
    if not shuffle:
        assert read == everything


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    num_splits=st.integers(1, 6),
)
def test_reading_in_pieces_gives_the_same_line(sizes, cuts, num_splits):
    order = EpochOrder(key(num_splits=num_splits), [sizes], [1.0])
    whole = list(line(order))
    edges = sorted({0, order.num_sequences, *(cut % (order.num_sequences + 1) for cut in cuts)})
    pieces = [item for start, stop in itertools.pairwise(edges) for item in line(order, start, stop)]
    assert pieces == whole


def test_order_depends_on_each_part_of_its_key_and_nothing_else():
    lengths = [[50] * 8]
    base = list(line(EpochOrder(key(), lengths, [1.0])))
    assert base == list(line(EpochOrder(key(), lengths, [1.0])))
    for other in (key(seed=1), key(epoch=1), key(num_splits=5), key(digest="e")):
        assert base != list(line(EpochOrder(other, lengths, [1.0])))


def test_order_of_version_1_never_changes():
    order = EpochOrder(key(seed=3, epoch=2, num_splits=3), [[40, 17, 9], [25]], [1.0, 1.5])
    text = repr(
        list(line(order, blocks_of=lambda visit: [visit.length // 2, visit.length - visit.length // 2]))
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "83e62939ff2b9244"


def test_batches_mix_shards_and_each_stretch_of_a_split_is_one_window():
    order = EpochOrder(key(num_splits=8), [[64] * 16], [1.0])
    first_batch = list(line(order, 0, 8 * GROUP))
    assert len({shard for _, shard, _ in first_batch}) == 8


@pytest.mark.parametrize(("weight", "times"), [(2.0, {2}), (0.5, {0, 1}), (1.5, {1, 2}), (0.0, {0})])
def test_weight_is_the_expected_number_of_occurrences(weight, times):
    order = EpochOrder(key(), [[30] * 10, [7] * 3], [weight, 1.0])
    counts = {(shard, sequence): 0 for shard in range(10) for sequence in range(30)}
    for store, shard, sequence in line(order, blocks_of=lambda visit: [30] if visit.store == 0 else [7]):
        if store == 0:
            counts[shard, sequence] += 1
    assert set(counts.values()) == times
    assert sum(counts.values()) == round(300 * weight)
    assert order.num_sequences == round(300 * weight) + 21


def test_fraction_takes_another_part_every_epoch():
    halves = [
        {item[1:] for item in line(EpochOrder(key(epoch=epoch), [[30] * 10], [0.5]))} for epoch in range(2)
    ]
    assert len(halves[0]) == len(halves[1]) == 150
    assert halves[0] != halves[1]


@given(start=st.integers(0, 99), size=st.integers(0, 99), world_size=st.integers(1, 9), even=st.booleans())
def test_ranks_cut_a_batch_without_gap_or_overlap(start, size, world_size, even):
    parts = [rank_slice(start, start + size, rank, world_size, even=even) for rank in range(world_size)]
    if even and size < world_size:
        assert {stop - begin for begin, stop in parts} == {0}
        return
    assert parts[0][0] == start
    assert parts[-1][1] == start + size
    assert all(left[1] == right[0] for left, right in itertools.pairwise(parts))
    sizes = [stop - begin for begin, stop in parts]
    assert max(sizes) - min(sizes) <= 1


def test_line_refuses_places_outside_the_epoch():
    order = EpochOrder(key(), [[5]], [1.0])
    with pytest.raises(ValueError, match=r"\[0, 6\) is not within the epoch's 5 sequences"):
        list(order.runs(0, 6))


def readers_of_a_split(num_splits, batch_size, world_size, num_workers):
    """Most readers (rank, worker) that any split has, in an epoch of equal shards."""
    order = EpochOrder(key(num_splits=num_splits), [[64] * 48], [1.0])
    readers = [set() for _ in order.splits]
    step_size = batch_size * world_size
    for step, start in enumerate(range(0, order.num_sequences, step_size)):
        stop = min(start + step_size, order.num_sequences)
        for rank in range(world_size):
            for run in order.runs(*rank_slice(start, stop, rank, world_size)):
                readers[run.split].add((rank, step % num_workers))
    return max(map(len, readers))


@pytest.mark.parametrize(
    ("batch_size", "world_size", "num_workers"), [(8, 1, 2), (8, 4, 3), (16, 2, 3), (24, 2, 2), (32, 3, 1)]
)
def test_no_two_readers_decode_a_block_under_the_rule_of_num_splits(batch_size, world_size, num_workers):
    num_splits = batch_size // GROUP * world_size * num_workers
    assert 48 % num_splits == 0, "equal splits"
    assert readers_of_a_split(num_splits, batch_size, world_size, num_workers) == 1
    if num_splits > 2:
        assert readers_of_a_split(num_splits - 1, batch_size, world_size, num_workers) > 1
    assert readers_of_a_split(num_splits, GROUP // 2, world_size, num_workers) > 1
