"""Reading the sequences of one split, each block decoded once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress

import numpy as np
from torch.utils.data import get_worker_info

from logitstore.records import LabeledSequence
from logitstore.shard.reader import ShardReader
from trainer.data.order import WINDOW_BLOCKS, EpochOrder, Visit, Window
from trainer.data.packed_rows import PackedRow
from trainer.data.samples import as_learned
from trainer.data.sources import Source
from trainer.errors import CacheTooSmallError

FETCH_THREADS = 4
MOST_DECODERS = WINDOW_BLOCKS
"""Threads that decode the blocks of a window side by side; what they run releases the interpreter's lock."""


def usable_cores() -> int:
    """Cores that this process may run on, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


StoredSequence = tuple[int, LabeledSequence]
"""Index of the store, and the sequence."""


class Fetcher:
    """Brings shards into the cache ahead of their reading. One per iteration; `close` waits for it."""

    def __init__(self, sources: Sequence[Source], predownload: int) -> None:
        self.predownload = predownload
        self._sources = sources
        self._pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="logit-fetch")
        # Loader workers have each other to compete with, and no core that is idle.
        self.num_decoders = 1 if get_worker_info() is not None else min(MOST_DECODERS, usable_cores())
        self._decoders = ThreadPoolExecutor(self.num_decoders, thread_name_prefix="logit-decode")
        self._fetches: dict[tuple[int, int], Future[None]] = {}

    def ahead(self, visits: Sequence[Visit]) -> None:
        for visit in visits:
            key = (visit.store, visit.shard)
            if key not in self._fetches:
                self._fetches[key] = self._pool.submit(self._sources[visit.store].fetch, visit.shard)

    def wait(self, visit: Visit) -> None:
        """Until the shard is there, or there was no room for it ahead of time; raises what went wrong."""
        fetch = self._fetches.pop((visit.store, visit.shard), None)
        if fetch is not None:
            with suppress(CacheTooSmallError):
                fetch.result()

    def decode(
        self, reader: ShardReader, blocks: Sequence[int], top_k: int | None
    ) -> dict[int, list[LabeledSequence]]:
        """Blocks of a shard, by their numbers."""
        if self.num_decoders == 1 or len(blocks) == 1:
            return {block: reader.read_block(block, top_k=top_k) for block in blocks}
        decoded = self._decoders.map(lambda block: reader.read_block(block, top_k=top_k), blocks)
        return dict(zip(blocks, decoded, strict=True))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._decoders.shutdown(cancel_futures=True)


class SplitReader:
    """The sequences of a split by their place, for places that only go up."""

    def __init__(
        self, order: EpochOrder, split: int, sources: Sequence[Source], fetcher: Fetcher, top_k: int | None
    ) -> None:
        self._order = order
        self._split = split
        self._sources = sources
        self._fetcher = fetcher
        self._top_k = top_k
        self._files = ExitStack()
        self._visit_index: int | None = None
        self._reader: ShardReader | None = None
        self._windows: list[Window] = []
        self._window_ends: np.ndarray = np.empty(0, dtype=np.int64)
        self._window_index: int | None = None
        self._window_sequences: list[LabeledSequence] = []

    def read(self, place: int) -> StoredSequence:
        """(index of the store, sequence) at a place of the split."""
        index, within = self._order.visit_at(self._split, place)
        visit = self._order.splits[self._split][index]
        if index != self._visit_index:
            self._open(index, visit)
        window = int(np.searchsorted(self._window_ends, within, side="right"))
        if window != self._window_index:
            self._window_sequences = self._decode(self._windows[window], visit)
            self._window_index = window
        start = int(self._window_ends[window - 1]) if window else 0
        return visit.store, self._window_sequences[within - start]

    def close(self) -> None:
        self._window_sequences = []
        self._reader = None
        self._files.close()

    def _open(self, index: int, visit: Visit) -> None:
        self.close()
        source = self._sources[visit.store]
        following = self._order.splits[self._split][index + 1 : index + 1 + self._fetcher.predownload]
        self._fetcher.wait(visit)
        self._reader = self._files.enter_context(source.open(visit.shard))
        self._fetcher.ahead(following)
        counts = np.bincount(self._block_of(visit), minlength=self._reader.num_blocks)
        self._windows = self._order.windows(visit, counts.tolist())
        self._window_ends = np.cumsum([len(window.sequences) for window in self._windows])
        self._visit_index, self._window_index = index, None

    def _block_of(self, visit: Visit) -> np.ndarray:
        """int64, the block of each sequence of the shard that takes part."""
        assert self._reader is not None
        kept = self._sources[visit.store].kept(visit.shard)
        return np.searchsorted(self._reader.block_starts, kept, side="right") - 1

    def _decode(self, window: Window, visit: Visit) -> list[LabeledSequence]:
        assert self._reader is not None
        starts = self._reader.block_starts
        kept = self._sources[visit.store].kept(visit.shard)[window.sequences]
        self._window_sequences = []  # free the last window before the next is decoded
        blocks = self._fetcher.decode(self._reader, window.blocks, self._top_k)
        block_of = np.searchsorted(starts, kept, side="right") - 1
        labels = self._sources[visit.store].manifest.labels
        return [
            as_learned(blocks[block][sequence - starts[block]], labels)
            for block, sequence in zip(block_of.tolist(), kept.tolist(), strict=True)
        ]


class RowReader:
    """The packed rows of a split, for rows whose parts only go up: each part is read once, and held until
    a row of the next part is asked for."""

    def __init__(self, reader: SplitReader) -> None:
        self._reader = reader
        self._start: int | None = None
        self._held: list[StoredSequence] = []

    def read(self, row: PackedRow) -> list[StoredSequence]:
        if row.start != self._start:
            self._held = []  # freed before the next are decoded
            self._held = [self._reader.read(place) for place in range(row.start, row.stop)]
            self._start = row.start
        return [self._held[place - row.start] for place in row.members]
