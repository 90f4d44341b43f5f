"""Which numbers of cores and workers reading is measured with, and that it is held to them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.students import loading
from tests.trainer.stores import make_store


@pytest.mark.parametrize(
    ("cores", "fewer", "workers"),
    [
        (1, [], [2]),
        (2, [1], [2]),
        (4, [1, 2], [2, 4]),
        (6, [1, 2, 4], [2, 4]),
        (16, [1, 2, 4, 8], [2, 4, 8, 16]),
    ],
)
def test_numbers_double_up_to_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, fewer: list[int], workers: list[int]
) -> None:
    store = make_store(tmp_path / "store", (2,))
    monkeypatch.setattr(loading, "usable_cores", lambda: cores)
    assert list(loading._on_fewer_cores(store)) == [f"store, local, cores: {number}" for number in fewer]
    assert list(loading._with_workers(store)) == [f"store, local, {number} workers" for number in workers]


def test_reading_and_its_threads_are_held_to_the_cores_and_let_go() -> None:
    before, seen = os.sched_getaffinity(0), list[int]()

    def batches() -> Iterator[int]:
        for number in range(2):
            thread = threading.Thread(target=lambda: seen.append(len(os.sched_getaffinity(0))))
            thread.start()
            thread.join()
            yield number

    assert list(loading._held_to(1, batches())) == [0, 1]
    assert seen == [1, 1]
    assert os.sched_getaffinity(0) == before
