"""Reading the sequences of one split, each block decoded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
from torch.utils.data import get_worker_info

from logitstore.records import LabeledSequence
from logitstore.shard.reader import ShardReader
from trainer.data.order import GROUP, WINDOW_BLOCKS, EpochOrder, Visit, Window
from trainer.data.packed_rows import PackedLine, PackedRow
from trainer.data.samples import as_learned
from trainer.data.sources import Source
from trainer.errors import CacheTooSmallError

FETCH_THREADS = 4
MOST_DECODERS = WINDOW_BLOCKS
"""Threads that decode the blocks of a window side by side; what they run releases the interpreter's lock."""


def usable_cores() -> int:
    """Cores that this process may run on, where the system tells, divided among the ranks of the machine that
    a launcher (torchrun, accelerate) names in LOCAL_WORLD_SIZE."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(cores // int(ranks), 1) if ranks.isdecimal() and int(ranks) else cores


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


@dataclass(frozen=True, slots=True)
class _OpenShard:
    """The shard of a visit."""

    visit_index: int
    reader: ShardReader
    windows: list[Window]
    window_ends: np.ndarray
    """int64, of the windows: how many of the visit's sequences lie in it and before it."""


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
        self._opened: _OpenShard | None = None
        self._window_index: int | None = None
        self._window_sequences: list[LabeledSequence] = []

    def read(self, place: int) -> StoredSequence:
        """(index of the store, sequence) at a place of the split."""
        index, within = self._order.visit_at(self._split, place)
        visit = self._order.splits[self._split][index]
        with self._sources[visit.store].naming_gone(visit.shard):
            return visit.store, self._read(index, within, visit)

    def _read(self, index: int, within: int, visit: Visit) -> LabeledSequence:
        opened = self._opened
        if opened is None or opened.visit_index != index:
            opened = self._open(index, visit)
        window = int(np.searchsorted(opened.window_ends, within, side="right"))
        if window != self._window_index:
            self._window_sequences = self._decode(opened.reader, opened.windows[window], visit)
            self._window_index = window
        start = int(opened.window_ends[window - 1]) if window else 0
        return self._window_sequences[within - start]

    def close(self) -> None:
        self._window_sequences = []
        self._opened = None
        self._files.close()

    def _open(self, index: int, visit: Visit) -> _OpenShard:
        self.close()
        source = self._sources[visit.store]
        following = self._order.splits[self._split][index + 1 : index + 1 + self._fetcher.predownload]
        self._fetcher.wait(visit)
        reader = self._files.enter_context(source.open(visit.shard))
        self._fetcher.ahead(following)
        block_of = np.searchsorted(reader.block_starts, source.kept(visit.shard), side="right") - 1
        windows = self._order.windows(visit, np.bincount(block_of, minlength=reader.num_blocks).tolist())
        ends = np.cumsum([len(window.sequences) for window in windows])
        self._opened, self._window_index = _OpenShard(index, reader, windows, ends), None
        return self._opened

    def _decode(self, reader: ShardReader, window: Window, visit: Visit) -> list[LabeledSequence]:
        starts = reader.block_starts
        kept = self._sources[visit.store].kept(visit.shard)[window.sequences]
        self._window_sequences = []  # free the last window before the next is decoded
        blocks = self._fetcher.decode(reader, window.blocks, self._top_k)
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


@dataclass(frozen=True, slots=True)
class EpochReader:
    """Reads steps of one epoch; packed ones where it has a line of rows."""

    order: EpochOrder
    line: PackedLine | None
    sources: Sequence[Source]
    predownload: int
    top_k: int | None

    def steps(
        self, starts: range, part: Callable[[int], tuple[int, int]], batch_size: int
    ) -> Iterator[list[list[StoredSequence]]]:
        """By step, the rows that this rank gets of it, each of one sequence unless they are packed.

        `starts` are the steps' places in the epoch's line, and `part` gives [start, stop) of the rank's own
        `batch_size` of the step that begins there.
        """
        fetcher = Fetcher(self.sources, self.predownload)
        splits = range(len(self.order.splits))
        readers = [SplitReader(self.order, split, self.sources, fetcher, self.top_k) for split in splits]
        row_readers = [RowReader(reader) for reader in readers]
        try:
            in_turn = GROUP if self.line is None else 1
            first_steps = starts[: -(-len(splits) * in_turn // batch_size)]
            fetcher.ahead(self._first_visits([part(start) for start in first_steps]))
            for start in starts:
                if self.line is not None:
                    yield [row_readers[row.split].read(row) for row in self.line.rows(*part(start))]
                    continue
                yield [
                    [readers[run.split].read(place)]
                    for run in self.order.runs(*part(start))
                    for place in range(run.start, run.start + run.count)
                ]
        finally:
            for reader in readers:
                reader.close()
            fetcher.close()

    def _first_visits(self, parts: Sequence[tuple[int, int]]) -> list[Visit]:
        """The shards needed first, so that they are fetched side by side."""
        visits: dict[int, Visit] = {}
        for part in parts:
            for first in self.order.runs(*part) if self.line is None else self.line.rows(*part):
                index, _ = self.order.visit_at(first.split, first.start)
                visits.setdefault(first.split, self.order.splits[first.split][index])
        return list(visits.values())
