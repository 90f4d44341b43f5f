"""The order in which sequences are read: a pure function of (digest, seed, epoch, num_splits).

An epoch is a line of N sequences. Its shards are shuffled and dealt to `num_splits` splits; the line
takes GROUP sequences from each split in turn, so that a batch mixes several shards while a process
that reads every n-th batch meets few of them. Within a shard blocks are shuffled, and sequences within
windows of WINDOW_BLOCKS blocks, so that every block is decoded once.

Nothing here depends on ranks, workers or batch sizes: those only cut the line into pieces
(`rank_slice`). Whoever reads, the line is the same, and a single number says how far it is consumed.

Random keys are raw Philox output, whose stream numpy promises never to change; `Generator` methods
carry no such promise. A change to anything here must raise ORDER_VERSION, which saved states hold.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from trainer.errors import SettingError

ORDER_VERSION = 1
GROUP = 8
"""Sequences taken from one split before the next has its turn."""
WINDOW_BLOCKS = 4
"""Blocks whose sequences are shuffled together; about 16,000 label rows are decoded at a time."""


@dataclass(frozen=True, slots=True)
class OrderKey:
    """What the order depends on, besides the stores' contents named by `digest`."""

    digest: str
    seed: int
    epoch: int
    num_splits: int
    shuffle: bool

    def permutation(self, length: int, *purpose: object) -> np.ndarray:
        """int64 [length], a permutation drawn from this key and the purpose; the identity unshuffled."""
        if not self.shuffle:
            return np.arange(length)
        text = "|".join(map(str, (ORDER_VERSION, self.digest, self.seed, self.epoch, *purpose)))
        key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype=np.uint64)
        return np.argsort(np.random.Philox(key=key).random_raw(length), kind="stable")


@dataclass(frozen=True, slots=True)
class Visit:
    """One reading of one shard in an epoch."""

    store: int
    shard: int
    """Place of the shard in its store's list."""
    copy: int
    """How many earlier visits to this shard the epoch holds; above 0 only for stores of weight over 1."""
    length: int
    """Sequences taken, from the start of the shard's order."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive places of one split."""

    split: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Window:
    """Blocks decoded together, and the order of their sequences."""

    blocks: tuple[int, ...]
    sequences: np.ndarray
    """int64, indices into the sequences of the shard that take part, in reading order."""


class EpochOrder:
    """One epoch's line of sequences.

    `lengths` holds, per store, the number of sequences of each shard that take part; `weights`, per
    store, how often its sequences occur in an epoch (2 is twice, 0.5 is a different half every epoch).
    """

    def __init__(self, key: OrderKey, lengths: Sequence[Sequence[int]], weights: Sequence[float]) -> None:
        self.key = key
        visits = [visit for store in range(len(lengths)) for visit in _visits(key, store, lengths, weights)]
        shuffled = [visits[index] for index in key.permutation(len(visits), "shards")]
        self.splits: list[list[Visit]] = _deal(shuffled, key.num_splits if key.shuffle else 1)
        self._ends = [list(accumulate(visit.length for visit in split)) for split in self.splits]
        sizes = np.array([ends[-1] for ends in self._ends], dtype=np.int64)
        self.num_sequences = int(sizes.sum())
        self._groups = sizes // GROUP
        self._rest_starts = int(self._groups.sum()) * GROUP + np.concatenate([[0], np.cumsum(sizes % GROUP)])

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The places of the line from `start` to before `stop`, in order."""
        if not 0 <= start <= stop <= self.num_sequences:
            raise ValueError(f"[{start}, {stop}) is not within the epoch's {self.num_sequences} sequences")
        while start < stop:
            split, place, left = self._locate(start)
            count = min(left, stop - start)
            yield Run(split, place, count)
            start += count

    def visit_at(self, split: int, place: int) -> tuple[int, int]:
        """(index of the visit in the split, place within the visit)."""
        ends = self._ends[split]
        index = bisect_right(ends, place)
        return index, place - (ends[index - 1] if index else 0)

    def windows(self, visit: Visit, block_lengths: Sequence[int]) -> list[Window]:
        """How a visit reads its shard; `block_lengths` counts each block's sequences that take part.

        The windows cover the whole shard; a visit with a smaller `length` stops before their end.
        """
        purpose = (visit.store, visit.shard, visit.copy)
        starts = np.concatenate([[0], np.cumsum(block_lengths)])
        used = np.flatnonzero(np.asarray(block_lengths))
        blocks = used[self.key.permutation(len(used), "blocks", *purpose)]
        windows = []
        for first in range(0, len(blocks), WINDOW_BLOCKS):
            chosen = blocks[first : first + WINDOW_BLOCKS]
            members = np.concatenate([np.arange(starts[block], starts[block + 1]) for block in chosen])
            order = self.key.permutation(len(members), "sequences", *purpose, first)
            windows.append(Window(tuple(int(block) for block in chosen), members[order]))
        return windows

    def _locate(self, position: int) -> tuple[int, int, int]:
        """(split, place in it, how many consecutive places follow, this one included)."""
        if position >= self._rest_starts[0]:
            split = int(np.searchsorted(self._rest_starts, position, side="right")) - 1
            place = int(self._groups[split]) * GROUP + position - int(self._rest_starts[split])
            return split, place, int(self._rest_starts[split + 1]) - position
        group, offset = divmod(position, GROUP)
        turn = self._turn_of(group)
        active = np.flatnonzero(self._groups > turn)
        split = int(active[group - int(np.minimum(self._groups, turn).sum())])
        return split, turn * GROUP + offset, GROUP - offset

    def _turn_of(self, group: int) -> int:
        """The largest turn that begins at or before a group: splits drop out of the round as they end."""
        low, high = 0, int(self._groups.max())
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if np.minimum(self._groups, middle).sum() <= group else (low, middle)
        return low


def rank_slice(start: int, stop: int, rank: int, world_size: int, *, even: bool = False) -> tuple[int, int]:
    """The part of one global batch [start, stop) of the line that a rank reads.

    Parts are contiguous and differ in size by at most one. With `even`, a batch with fewer sequences
    than ranks is left out, so that all ranks see the same number of batches.
    """
    size = stop - start
    if even and size < world_size:
        return start, start
    return start + size * rank // world_size, start + size * (rank + 1) // world_size


def share_of_epoch(num_sequences: int, weight: float) -> tuple[int, int]:
    """How often an epoch has all of so many sequences, and how many of them it has once more."""
    whole = int(weight)
    return whole, round((weight - whole) * num_sequences)


def _visits(
    key: OrderKey, store: int, lengths: Sequence[Sequence[int]], weights: Sequence[float]
) -> Iterator[Visit]:
    """Whole copies of the store first, then shards in random order until the fraction is reached."""
    shard_lengths = lengths[store]
    whole, wanted = share_of_epoch(sum(shard_lengths), weights[store])
    for copy in range(whole):
        for shard, length in enumerate(shard_lengths):
            if length:
                yield Visit(store, shard, copy, length)
    for shard in key.permutation(len(shard_lengths), "fraction", store):
        length = min(wanted, shard_lengths[shard])
        if length:
            yield Visit(store, int(shard), whole, length)
        wanted -= length


def _deal(visits: Sequence[Visit], num_splits: int) -> list[list[Visit]]:
    """Give each visit in turn to the split with the fewest sequences; the lower index wins a tie."""
    splits: list[list[Visit]] = [[] for _ in range(min(num_splits, len(visits)))]
    heap = [(0, index) for index in range(len(splits))]
    for visit in visits:
        size, index = heap[0]
        splits[index].append(visit)
        heapq.heapreplace(heap, (size + visit.length, index))
    if not splits:
        raise SettingError(
            "no sequence is left to read: the stores are empty, their weights are 0, or the held-out "
            "fraction or `where` leaves nothing; check [data]"
        )
    return splits
