"""What reading a shard costs on S3, counted at the requests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.servers.s3 import S3Server
from logitstore.objects.s3 import S3Backend
from logitstore.records import LabeledSequence
from logitstore.store import LogitStore
from tests.logitstore.random_labels import make_manifest, make_rows


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that came back from each ranged or whole GET."""
    sizes: list[int] = []
    get_range = S3Backend.get_range

    def counting(self: S3Backend, name: str, start: int, end: int | None) -> bytes:
        data = get_range(self, name, start, end)
        if name.startswith("shards/"):
            sizes.append(len(data))
        return data

    monkeypatch.setattr(S3Backend, "get_range", counting)
    return sizes


VOCAB_SIZE = 2000


def make_long_sequence(number: int) -> LabeledSequence:
    """500 rows at K=128; ids as incompressible as they get, values as in other tests."""
    rng = np.random.default_rng(number)
    token_ids_T = rng.integers(0, VOCAB_SIZE, 501).astype(np.int32)
    rows = make_rows(500, 128, rng, token_ids_T[1:], VOCAB_SIZE)
    return LabeledSequence(f"r{number}", 0, token_ids_T, 0, 1, rows, np.ones(500, bool), "scored")


@pytest.fixture(scope="module")
def store(s3_server: S3Server) -> LogitStore:
    """One shard of 10,000 rows at K=128, three blocks."""
    manifest = make_manifest()
    labels = dataclasses.replace(manifest.labels, vocab_size=VOCAB_SIZE, top_k=128)
    manifest = dataclasses.replace(manifest, labels=labels)
    uri = s3_server.uri("ranged-reads/store")
    store = LogitStore.create(uri, manifest, storage_options=s3_server.storage_options)
    sequences = [make_long_sequence(number) for number in range(20)]
    store.commit_unit("u", 0, sequences, seconds=0, worker="w")
    return store


@pytest.mark.s3
@pytest.mark.slow
def test_sixteen_of_128_entries_cost_under_a_fifth(store: LogitStore, requests: list[int]) -> None:
    entry = store.shards()[0]
    reader = store.open_shard(entry)
    prefixes = list(reader.iter_sequences(top_k=16))
    assert sum(requests) < 0.2 * entry.num_bytes, (requests, entry.num_bytes)
    assert len(requests) <= 6 + 4 * reader.num_blocks
    requests.clear()
    wholes = list(store.open_shard(entry, whole=True).iter_sequences())
    assert requests == [entry.num_bytes], "one request for the whole"
    for prefix, whole in zip(prefixes, wholes, strict=True):
        np.testing.assert_array_equal(prefix.rows.token_ids_NK, whole.rows.token_ids_NK[:, :16])
        np.testing.assert_array_equal(prefix.rows.logits_NK, whole.rows.logits_NK[:, :16])


@pytest.mark.s3
@pytest.mark.slow
def test_one_block_is_read_alone(store: LogitStore, requests: list[int]) -> None:
    entry = store.shards()[0]
    reader = store.open_shard(entry)
    assert reader.num_blocks >= 2
    requests.clear()
    block = reader.read_block(1)
    rows = sum(sequence.rows.num_rows for sequence in block)
    assert sum(requests) < 1.2 * entry.num_bytes * rows / entry.num_rows
    assert len(requests) <= 4
