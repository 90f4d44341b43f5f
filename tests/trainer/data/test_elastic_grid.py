"""Killed at random and resumed on other machines, the data is the same: no row missing, none twice, same order."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.conftest import NUM_SEQUENCES
from trainer.data.dataset import StreamingLogitDataset
from trainer.data.loader import LogitDataLoader

TOPOLOGIES = [(world_size, num_workers) for world_size in (1, 2, 4) for num_workers in (0, 1, 4)]
BATCH_SIZE = 2
NUM_EPOCHS = 2
STEP_SEC = 0.01
"""What a training step takes: long enough for a kill to fall anywhere."""


def record_ids(samples):
    return [sample.sequence.record_id for sample in samples]


def read(
    store: Path,
    world_size: int,
    num_workers: int,
    state: dict[str, Any] | None,
    log: Path,
    *,
    until_killed: bool,
) -> None:
    """All ranks of a job in lockstep; a line for every step they have trained on.

    `until_killed` waits at the end for a kill that comes late, as it may on a busy machine.
    """
    loaders = [
        LogitDataLoader(
            StreamingLogitDataset(
                store, batch_size=BATCH_SIZE, num_splits=4, rank=rank, world_size=world_size, seed=3
            ),
            record_ids,
            num_workers=num_workers,
        )
        for rank in range(world_size)
    ]
    if state is not None:
        for loader in loaders:
            loader.load_state_dict(state)
    with log.open("a") as file:
        while True:
            for loader in loaders:
                loader.logit_dataset.begin()
            if loaders[0].logit_dataset.epoch == NUM_EPOCHS:
                break
            iterators = [iter(loader) for loader in loaders]
            while step := [batch for batch in (next(iterator, None) for iterator in iterators) if batch]:
                file.write(json.dumps({"batches": step, "state": loaders[0].state_dict()}) + "\n")
                file.flush()
                time.sleep(STEP_SEC)
    while until_killed:
        time.sleep(1)


def run_until_killed(store, topology, state, log: Path, kill_after: int | None) -> list[dict[str, Any]]:
    """Steps trained on by a job that gets SIGKILL some time after `kill_after` of them, or ends by itself."""
    process = multiprocessing.get_context("fork").Process(
        target=read,
        args=(store, *topology, state, log),
        kwargs={"until_killed": kill_after is not None},
    )
    process.start()
    if kill_after is not None:
        while process.is_alive() and (not log.exists() or log.read_bytes().count(b"\n") < kill_after):
            time.sleep(0.002)
        time.sleep(random.Random(repr((topology, kill_after))).uniform(0, 2 * STEP_SEC))
        process.kill()
    process.join()  # with a timeout it would wait for orphaned workers too, which notice within 5 s
    assert process.exitcode == (0 if kill_after is None else -signal.SIGKILL)
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []  # a torn line was not trained on
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*fork.*:DeprecationWarning")
def test_grid_of_topologies_and_kills(small_store, tmp_path, capsys):
    reference = StreamingLogitDataset(small_store, num_splits=4, seed=3)
    line = [name for _ in range(NUM_EPOCHS) for name in record_ids(reference)]
    rows, rng = [], random.Random(7)
    for index, first in enumerate(TOPOLOGIES):
        chain = [first, TOPOLOGIES[(index + 4) % 9], TOPOLOGIES[(index + 2) % 9]]
        seen: list[str] = []
        kills, state = [], None
        for life, topology in enumerate(chain):
            num_left = (len(line) - len(seen)) // (BATCH_SIZE * topology[0])
            kill_after = None if life == len(chain) - 1 else rng.randint(0, max(num_left - 2, 0))
            log = tmp_path / f"{index}-{life}.jsonl"
            steps = run_until_killed(small_store, topology, state, log, kill_after)
            seen += [name for step in steps for batch in step["batches"] for name in batch]
            state = steps[-1]["state"] if steps else state
            kills.append(len(seen))
        rows.append((chain, kills[:-1], sorted(seen) == sorted(line), seen == line))
    with capsys.disabled():
        print(
            f"\n{NUM_SEQUENCES} sequences, {NUM_EPOCHS} epochs; (world size, workers), kill -9 after n sequences"
        )
        print(f"{'start':>8} {'then':>8} {'then':>8} {'killed after':>14}  same rows  same order")
        for chain, kills, same_rows, same_order in rows:
            places = " ".join(f"{topology!s:>8}" for topology in chain)
            print(f"{places} {kills!s:>14}  {same_rows!s:>9}  {same_order!s:>10}")
    assert all(same_rows and same_order for _, _, same_rows, same_order in rows)


def test_the_place_saved_by_one_rank_holds_for_all(small_store):
    loaders = [
        LogitDataLoader(StreamingLogitDataset(small_store, batch_size=3, rank=rank, world_size=2), record_ids)
        for rank in range(2)
    ]
    iterators = [iter(loader) for loader in loaders]
    for _ in range(4):
        for iterator in iterators:
            next(iterator)
    assert loaders[0].state_dict() == loaders[1].state_dict()
    assert loaders[0].state_dict()["consumed"] == 4 * 3 * 2
