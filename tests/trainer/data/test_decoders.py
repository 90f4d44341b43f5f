"""Blocks of a window are decoded side by side by threads of one process, and what is read does not change."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from logitstore.shard.reader import ShardReader
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_sequence
from trainer.data import reading
from trainer.data.dataset import StreamingLogitDataset

TURN_SEC = 20.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three shards of eight blocks of two sequences."""
    monkeypatch.setattr("logitstore.shard.writer.BLOCK_ROWS", 22)
    store = LogitStore.create(tmp_path / "store", make_manifest())
    for unit in range(3):
        sequences = [make_sequence(f"{unit}-{place}") for place in range(16)]
        store.commit_unit(f"unit-{unit}", unit, sequences, seconds=0, worker="w")
    return store.uri


def read(uri: str) -> list[tuple[str, bytes]]:
    dataset = StreamingLogitDataset(uri, batch_size=4)
    return [(one.sequence.record_id, one.sequence.rows.logits_NK.tobytes()) for one in dataset]


@pytest.mark.parametrize(
    ("ranks", "cores"), [(None, 16), ("1", 16), ("8", 2), ("3", 5), ("32", 1), ("0", 16), ("many", 16)]
)
def test_ranks_of_one_machine_divide_its_cores(
    ranks: str | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight ranks each took all cores for their own, and as many threads and workers."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert reading.usable_cores() == cores


def test_any_number_of_decoders_reads_the_same(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 2, 16):
        monkeypatch.setattr(reading, "usable_cores", lambda cores=cores: cores)
        found.append(read(store))
    assert len(found[0]) == 48
    assert found[0] == found[1] == found[2]


def test_two_blocks_of_a_file_are_decoded_at_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each decoding waits for another one, which comes only if they run side by side."""
    monkeypatch.setattr(reading, "usable_cores", lambda: 2)
    both = threading.Barrier(2)
    decode = ShardReader._decode

    def meeting(self: ShardReader, plain, columns, top_k):
        both.wait(TURN_SEC)
        return decode(self, plain, columns, top_k)

    expected = sorted(name for name, _ in read(store))
    monkeypatch.setattr(ShardReader, "_decode", meeting)
    assert sorted(name for name, _ in read(store)) == expected


def test_what_goes_wrong_in_a_thread_is_raised(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "usable_cores", lambda: 4)
    shard = next(path for path in Path(store, "shards").iterdir())
    data = np.fromfile(shard, np.uint8)
    data[len(data) // 2] ^= 255
    data.tofile(shard)
    with pytest.raises(Exception, match=r"CRC-32|damaged"):
        read(store)
