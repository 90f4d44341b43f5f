"""A loader's worker outlives what a cluster sends to all processes, and ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainer.data.loader import _outlive_sigterm_of_others


class Stuck(IterableDataset[int]):
    """Its worker gives its process, and then never comes back from a call of C, as a read of dead storage."""

    def __iter__(self) -> Iterator[int]:
        assert get_worker_info() is not None
        yield os.getpid()
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second waits for the first, for ever
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
        yield 0


def main() -> None:
    batches = iter(
        DataLoader(
            Stuck(),
            batch_size=None,
            num_workers=1,
            worker_init_fn=_outlive_sigterm_of_others,
            prefetch_factor=2,
        )
    )
    worker = next(batches)
    subprocess.run(["kill", str(worker)], check=True)  # by another process than its parent
    time.sleep(0.5)
    os.kill(worker, 0)  # it is still there
    print("outlived", flush=True)
    raise SystemExit(7)  # with the loader's iterator at hand, as an error leaves it


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no process learns here who sent it a signal")
@pytest.mark.timeout(120)
def test_a_worker_ends_with_its_parent_alone_and_at_once() -> None:
    """Its process waited for ever: the two signals of torch and of Python at the end became one that it outlived."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.trainer.data.test_workers_end"],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (ended.returncode, ended.stdout) == (7, "outlived\n"), ended.stderr


if __name__ == "__main__":
    main()
