"""A small real store, shared by the trainer's tests, with several blocks per shard."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed

from tests.trainer.stores import make_store

UNITS = (12, 9, 15, 4, 11, 7)
NUM_SEQUENCES = sum(UNITS)


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logitstore.shard.writer.BLOCK_ROWS", 30)
        path = tmp_path_factory.mktemp("stores") / "small"
        store = make_store(path, UNITS)
    assert store.open_shard(store.shards()[0]).num_blocks > 2, "the tests want several blocks in a shard"
    return path


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """On models as small as these, threads spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """Whatever needs a process group runs in processes of its own (`two_processes.py`).

    The tests of the labeler may have left vLLM's: tests must not depend on there being none.
    """
    before = distributed.is_initialized()
    yield
    assert distributed.is_initialized() == before, "the test started or ended torch.distributed"
