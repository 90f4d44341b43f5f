"""Labels streamed from one or several stores, in an order that no restart and no machine count changes.

The order is a pure function of (digest of the stores, seed, epoch, num_splits), see `order.py`. Reading
is cut into global steps of `batch_size` x `world_size` sequences; step after step every rank reads its
part, and with several workers each takes every n-th step. So the state is that key and one number,
`consumed`: the sequences of the epoch's line that the consumer has. It goes up when a step has been
handed over, not when a worker has read it ahead, and it means the same for every topology.

With a `Packing` all this is counted in rows of several sequences instead (`packed_rows.py`), and what is
yielded is a tuple of samples, the sequences of one row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from trainer.data.cache.shard_cache import ShardCache
from trainer.data.order import ORDER_VERSION, EpochOrder, OrderKey, rank_slice
from trainer.data.packed_rows import PackedLine, Packing, splits_worth_packing
from trainer.data.prefetch import run_ahead
from trainer.data.random_access import RandomAccess
from trainer.data.reading import EpochReader, StoredSequence
from trainer.data.samples import Sample
from trainer.data.sources import (
    HeldOut,
    StoreSpec,
    check_top_k,
    combined_digest,
    each_once,
    open_sources,
    store_specs,
    warn_of_same_part,
)
from trainer.data.state import STATE_KIND, find_state, refuse_other_order
from trainer.data.topology import refuse_resharding, resolve_topology

Batch = TypeVar("Batch")

STEPS_AHEAD = 2
"""Steps that the background thread reads ahead of the consumer."""


class StreamingLogitDataset(IterableDataset[Any]):
    """Yields `Sample`s of this rank, or tuples of them with `packing`; `DistillationCollator` makes batches.

    Construct it after torch.distributed is initialised, or give rank and world_size. Iterating goes on
    from where the consumer is, into the next epoch after the end of one; `set_epoch` and `restart`
    move it. Under a DataLoader with workers other than `LogitDataLoader` only the workers' copies move:
    use `track`, or call `set_epoch` before every epoch, as PyTorch has it. `ds[i]` is the i-th of
    `num_sequences` in storage order, whatever the rank.
    """

    def __init__(
        self,
        stores: str | Path | StoreSpec | Sequence[str | Path | StoreSpec],
        *,
        batch_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        num_splits: int = 16,
        top_k: int | None = None,
        held_out: HeldOut | None = None,
        cache_dir: str | Path | None = None,
        cache_limit: int | None = None,
        predownload: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        replication: int = 1,
        even: bool = False,
        packing: Packing | None = None,
    ) -> None:
        """See `trainer.run.config.DataConfig` for the settings of the same names.

        Args:
            batch_size: sequences per rank and step; must be the DataLoader's when it has workers.
            held_out: which records to read; None reads all.
            replication: consecutive ranks that get the same data.
            even: leave out up to world_size - 1 sequences (rows, with `packing`) at the end of an epoch
                where not every rank would get one, so that all ranks take the same number of steps.
            packing: pack sequences into rows across steps. `batch_size`, `consumed`, `epoch_length` and
                `len` then count rows; the lengths of all sequences are read at construction.
        """
        if batch_size < 1 or num_splits < 1:
            raise ValueError(f"batch_size={batch_size} and num_splits={num_splits} must be at least 1")
        self._specs = store_specs(stores)
        self.weights = [spec.weight for spec in self._specs]
        self._cache = None if cache_dir is None else ShardCache(cache_dir, cache_limit)
        self.sources = open_sources(self._specs, self._cache, held_out)
        self.batch_size = batch_size
        self.seed, self.num_splits, self.shuffle = seed, num_splits, shuffle
        self.top_k = top_k
        self.predownload = predownload
        self.topology = resolve_topology(rank, world_size, replication)
        self.num_readers = self.topology.world_size * replication
        self.even = even and self.topology.world_size > 1
        self.digest = combined_digest(self.sources, self.weights, held_out)
        self.epoch = 0
        self.consumed = 0
        self._consumed_is_workers = False
        self.is_just_loaded = False
        """Whether nothing was read since a state was loaded."""
        self.packing = packing
        self._used_splits = num_splits
        if packing is not None:
            outlines = [source.outlines() for source in self.sources]
            self._used_splits = splits_worth_packing(outlines, self.weights, packing, num_splits)
        self._order_of_epoch: EpochOrder | None = None
        self._packed_line: PackedLine | None = None
        self._rows_by_order: dict[OrderKey, int] = {}
        self._random_access = RandomAccess(self.sources, top_k)
        self._judged: dict[int | None, StreamingLogitDataset] = {}
        check_top_k(self.sources, self._specs, top_k)
        if not shuffle and self.topology.rank == 0:
            warn_of_same_part(self._specs)
        self._check_cache()

    # ---- Size and random access ----

    @property
    def num_sequences(self) -> int:
        """Sequences that take part, each counted once, over all ranks."""
        return sum(sum(source.lengths) for source in self.sources)

    @property
    def num_entries(self) -> int:
        """Entries of the stores' label rows that this rank reads in an epoch, about."""
        stored = 0.0
        for source, weight in zip(self.sources, self.weights, strict=True):
            num_rows = sum(entry.num_rows for entry in source.entries)
            stored += weight * num_rows * (self.top_k or source.manifest.labels.top_k)
        return int(stored) // self.topology.world_size

    def labels_within(self, max_tokens: int | None) -> int:
        """Label rows at the first `max_tokens` tokens of the sequences that take part; None counts all.

        Reads the lengths of all sequences, once. Weights of stores do not count.
        """
        return sum(
            outline.labels_within(max_tokens) for source in self.sources for outline in source.outlines()
        )

    def judged(self, max_sequences: int | None) -> StreamingLogitDataset:
        """What an evaluation reads of it: each sequence once, at most `max_sequences` of them, the same ones
        in any order, in batches of any size and on any number of processes. At the start of an epoch.

        Which these are is asked of the shards once, unless all are taken.
        """
        if max_sequences not in self._judged:
            made = copy.copy(self)
            sources = each_once(self.sources, self.weights, max_sequences)
            vars(made).update(
                sources=sources,
                weights=[1.0] * len(sources),
                even=False,
                _random_access=RandomAccess(sources, self.top_k),
                _order_of_epoch=None,
                _rows_by_order={},
            )
            self._judged[max_sequences] = made
        made = self._judged[max_sequences]
        made.restart()
        made.set_epoch(0)
        return made

    @property
    def epoch_length(self) -> int:
        """Sequences (rows, with `packing`) of the epoch's line, over all ranks; weights count."""
        return self._length_of(self.epoch)

    def __len__(self) -> int:
        """Sequences (rows, with `packing`) that this rank reads in an epoch."""
        full, rest = divmod(self.epoch_length, self.step_size)
        start, stop = self._part(0, rest)
        return full * self.batch_size + stop - start

    def __getitem__(self, index: int) -> Sample:
        return self._random_access[index]

    @property
    def step_size(self) -> int:
        """Sequences (rows, with `packing`) of one step over all ranks."""
        return self.batch_size * self.topology.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which this rank gets something."""
        return self.steps_from(self.epoch)

    @property
    def steps_left(self) -> int:
        """Steps until the end of the epoch that the next iteration reads from."""
        return self.steps_from(self.epoch, 0 if self._is_finished() else self.consumed)

    def steps_from(self, epoch: int, consumed: int = 0) -> int:
        """Steps from a place of any epoch to its end; packed ones differ by some rows."""
        full, rest = divmod(self._length_of(epoch) - consumed, self.step_size)
        start, stop = self._part(0, rest)
        return full + (stop > start)

    # ---- State ----

    def set_epoch(self, epoch: int) -> None:
        """Read this epoch: from its start, or on from the present place if it is the present epoch.

        Raises ValueError for an epoch before the one of a state that was just loaded.
        """
        refuse_resharding(self.topology)
        if self.is_just_loaded and epoch < self.epoch:
            raise ValueError(
                f"the state that was loaded stands in epoch {self.epoch}; set_epoch({epoch}) would read its "
                f"data again. A loader that counts epochs by itself (accelerate's does) must be told: call "
                f"its set_epoch({self.epoch}) before iterating; restart() goes back on purpose"
            )
        if epoch != self.epoch or self._is_finished():
            self.epoch, self.consumed = epoch, 0

    def begin(self) -> None:
        """Go to the next epoch if this one is over, as iterating does."""
        self.is_just_loaded = False
        if self._is_finished():
            self.epoch, self.consumed = self.epoch + 1, 0

    def restart(self) -> None:
        """Go back to the start of the epoch."""
        self.consumed, self.is_just_loaded = 0, False

    def return_to(self, epoch: int, consumed: int) -> None:
        """Go back to a place, unless a state was just loaded, which is gone on from."""
        if not self.is_just_loaded:
            self.epoch, self.consumed = epoch, consumed

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is. In a worker: where this worker's next step begins."""
        return {
            "kind": STATE_KIND,
            "version": ORDER_VERSION,
            "digest": self.digest,
            "seed": self.seed,
            "num_splits": self.num_splits,
            "shuffle": self.shuffle,
            "epoch": self.epoch,
            "consumed": self.consumed,
            "packing": None if self.packing is None else asdict(self.packing),
            "packed_splits": None if self.packing is None else self._used_splits,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken, whatever the number of ranks and workers was then.

        Takes a state of this class or any nesting that holds some, such as the state of torchdata's
        StatefulDataLoader. Raises StoreChangedError for other stores, SettingError for another order.
        """
        saved = find_state(state)
        refuse_other_order(saved, self.state_dict())
        self.epoch, self.consumed = int(saved["epoch"]), int(saved["consumed"])
        self._consumed_is_workers = get_worker_info() is not None
        if not self._consumed_is_workers:
            self.begin()
            self.is_just_loaded = True

    def track(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass on the batches of a loader of this dataset, counting each one when it is handed over.

        For a plain DataLoader with workers, whose copies of the dataset cannot tell this one where the
        consumer is. `LogitDataLoader` does it by itself.
        """
        self.begin()
        start = self.consumed
        for step, batch in enumerate(batches):
            self.consumed = min(start + (step + 1) * self.step_size, self.epoch_length)
            yield batch
        self.consumed = self.epoch_length

    # ---- Reading ----

    def __iter__(self) -> Iterator[Any]:
        refuse_resharding(self.topology)
        worker = get_worker_info()
        stride = self.step_size * (1 if worker is None else worker.num_workers)
        if not self._consumed_is_workers:  # a worker that has done its part of the epoch adds nothing to it
            self.begin()
            if worker is not None:
                self.consumed = min(self.consumed + worker.id * self.step_size, self.epoch_length)
        self._consumed_is_workers = False
        return self._iterate(range(self.consumed, self.epoch_length, stride))

    def _iterate(self, starts: range) -> Iterator[Any]:
        length = self.epoch_length

        def part(start: int) -> tuple[int, int]:
            return self._part(start, min(start + self.step_size, length))

        def read() -> Iterator[list[list[StoredSequence]]]:  # in the background thread
            reader = EpochReader(self._order(), self._line(), self.sources, self.predownload, self.top_k)
            return reader.steps(starts, part, self.batch_size)

        steps = run_ahead(read, STEPS_AHEAD)
        try:
            for number, (start, rows) in enumerate(zip(starts, steps, strict=True)):
                for place, row in enumerate(rows, start=1):
                    if place == len(rows):
                        self.consumed = min(start + starts.step, length)
                    samples = tuple(
                        Sample(sequence, self.sources[store].manifest.labels, number, store)
                        for store, sequence in row
                    )
                    yield samples if self.packing is not None else samples[0]
        finally:
            steps.close()
        self.consumed = length

    def shards_by_step(self, count: int) -> list[set[tuple[int, int]]]:
        """For each of the next `count` steps, the readings of shards, (split, place in it), it takes from."""
        order, line = self._order(), self._line()
        found: list[set[tuple[int, int]]] = []
        for start in range(self.consumed, self.epoch_length, self.step_size)[:count]:
            part = self._part(start, min(start + self.step_size, self.epoch_length))
            runs = order.runs(*part) if line is None else line.rows(*part)
            found.append({(run.split, order.visit_at(run.split, run.start)[0]) for run in runs})
        return found

    def _part(self, start: int, stop: int) -> tuple[int, int]:
        return rank_slice(start, stop, self.topology.rank, self.topology.world_size, even=self.even)

    def _is_finished(self) -> bool:
        return self.consumed >= self.epoch_length

    def _length_of(self, epoch: int) -> int:
        if self.packing is None:
            return self._order().num_sequences  # of every epoch
        key = self._key(epoch)
        if key not in self._rows_by_order:
            line = self._line() if epoch == self.epoch else None
            line = line or self._packed(self._order_in(epoch), self.packing)
            self._rows_by_order[key] = line.num_rows
        return self._rows_by_order[key]

    def _order(self) -> EpochOrder:
        if self._order_of_epoch is None or self._order_of_epoch.key != self._key(self.epoch):
            self._order_of_epoch = self._order_in(self.epoch)
            self._packed_line = None
        return self._order_of_epoch

    def _order_in(self, epoch: int) -> EpochOrder:
        lengths = [source.lengths for source in self.sources]
        return EpochOrder(self._key(epoch), lengths, self.weights)

    def _key(self, epoch: int) -> OrderKey:
        return OrderKey(self.digest, self.seed, epoch, self._used_splits, self.shuffle)

    def _line(self) -> PackedLine | None:
        """The rows of the epoch; None without packing."""
        order = self._order()
        if self.packing is not None and self._packed_line is None:
            self._packed_line = self._packed(order, self.packing)
        return self._packed_line

    def _packed(self, order: EpochOrder, packing: Packing) -> PackedLine:
        return PackedLine(order, [source.outlines() for source in self.sources], packing)

    def _check_cache(self) -> None:
        if self._cache is None:
            return
        sizes = sorted((entry.num_bytes for source in self.sources for entry in source.entries), reverse=True)
        at_once = len(self._order().splits) * (1 + self.predownload)
        self._cache.require(
            sum(sizes[:at_once]),
            f"holding the {min(at_once, len(sizes))} largest shards that num_splits={self.num_splits} "
            f"and predownload={self.predownload} may need at once",
        )
