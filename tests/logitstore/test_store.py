"""Creating, committing, reading and resuming stores, on a local disk and on S3."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitstore.codec.codebook_training import train_codebooks
from logitstore.errors import (
    CorruptManifestError,
    InvalidLabelsError,
    SecretInManifestError,
    StoreExistsError,
    StoreNotFoundError,
    UnsafeNameError,
)
from logitstore.objects.opening import Objects
from logitstore.records import LabeledSequence, Reject
from logitstore.store import LogitStore
from tests.conftest import Place
from tests.logitstore.random_labels import make_manifest, make_sequence, make_unit

REJECT = Reject("input.jsonl", 7, None, "the line is not valid JSON", "invalid_json")


def commit(store: LogitStore, unit_index: int, rejects: tuple[Reject, ...] = ()) -> bool:
    unit_id, sequences = make_unit(unit_index)
    return store.commit_unit(unit_id, unit_index, sequences, rejects, seconds=1.5, worker="w")[1]


def assert_same(actual: LabeledSequence, expected: LabeledSequence) -> None:
    assert (actual.record_id, actual.sample_index) == (expected.record_id, expected.sample_index)
    np.testing.assert_array_equal(actual.token_ids_T, expected.token_ids_T)
    np.testing.assert_array_equal(actual.rows.token_ids_NK, expected.rows.token_ids_NK)
    np.testing.assert_allclose(actual.rows.logits_NK, expected.rows.logits_NK, atol=1e-6)
    np.testing.assert_allclose(actual.rows.logsumexp_NM, expected.rows.logsumexp_NM, atol=1e-4)
    np.testing.assert_allclose(actual.rows.log_tail_mass_NM, expected.rows.log_tail_mass_NM, atol=1e-3)


def test_what_is_committed_is_read(place: Place) -> None:
    store = LogitStore.create(place.uri, make_manifest(), storage_options=place.storage_options)
    for unit_index in (2, 0, 1):
        assert commit(store, unit_index, (REJECT,) if unit_index == 1 else ())
    other = LogitStore.open(place.uri, storage_options=place.storage_options)
    assert [entry.unit_index for entry in other.shards()] == [0, 1, 2]
    assert other.shards()[1].num_rejects == 1
    assert other.shards()[-1] == list(store.shards())[-1]
    assert other.committed_units() == {"unit-0000", "unit-0001", "unit-0002"}
    assert other.rejects() == [REJECT]
    expected = [sequence for index in range(3) for sequence in make_unit(index)[1]]
    for actual, wanted in zip(other.iter_sequences(), expected, strict=True):
        assert_same(actual, wanted)
    whole = other.open_shard(other.shards()[0], whole=True)
    assert_same(next(whole.iter_sequences()), expected[0])
    assert [len(sequence.rows.token_ids_NK[0]) for sequence in other.iter_sequences(top_k=2)] == [2] * 9
    totals = [int(other.shards().column(name).sum()) for name in ("num_sequences", "num_rows", "num_tokens")]
    assert totals == [9, 99, 108]
    assert other.manifest == store.manifest == make_manifest()


def test_a_unit_is_committed_once(place: Place) -> None:
    store = LogitStore.create(place.uri, make_manifest(), storage_options=place.storage_options)
    rival = LogitStore.open(place.uri, storage_options=place.storage_options)
    assert commit(store, 0)
    unit_id, sequences = make_unit(0)
    entry, won = rival.commit_unit(unit_id, 0, sequences, seconds=9, worker="late")
    assert not won
    assert entry == store.shards()[0]
    assert store.objects.list("shards/") == [entry.name]


def test_a_unit_of_rejects_has_no_shard(local_place: Place) -> None:
    store = LogitStore.create(local_place.uri, make_manifest())
    entry, won = store.commit_unit("unit-0000", 0, [], [REJECT], seconds=0.1, worker="w")
    assert won
    assert (entry.name, entry.num_bytes, entry.checksum, entry.num_rejects) == ("", 0, "", 1)
    assert commit(store, 1)
    store.compact()
    reopened = LogitStore.open(local_place.uri)
    assert reopened.shards()[0] == entry
    assert len(list(reopened.iter_sequences())) == 3
    with pytest.raises(ValueError, match="no shard"):
        reopened.open_shard(entry)


def test_create_again_resumes_and_another_job_is_refused(place: Place) -> None:
    options = place.storage_options
    first = LogitStore.create(place.uri, make_manifest(), storage_options=options)
    commit(first, 0)
    later = dataclasses.replace(make_manifest(), created="2026-12-01T00:00:00Z", config={"workers": 4})
    again = LogitStore.create(place.uri, later, storage_options=options)
    assert len(again.shards()) == 1
    assert again.manifest.created == make_manifest().created
    with pytest.raises(StoreExistsError, match=r"labels\.top_k is 8 there and 4 here"):
        LogitStore.create(place.uri, make_manifest(4), storage_options=options)
    with pytest.raises(StoreExistsError, match=r"teacher\.fingerprint"):
        LogitStore.create(place.uri, make_manifest(model="other"), storage_options=options)


def test_open_where_nothing_is(place: Place) -> None:
    with pytest.raises(StoreNotFoundError, match="no store lies at"):
        LogitStore.open(place.uri, storage_options=place.storage_options)


def test_an_export_given_as_a_store_is_told_where_its_store_is(tmp_path: Path) -> None:
    (tmp_path / "labels.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreNotFoundError, match=r"that is a file.*`penumbra store import`"):
        LogitStore.open(tmp_path / "labels.parquet")
    LogitStore.create(tmp_path / "labels", make_manifest())
    with pytest.raises(StoreNotFoundError, match=r"give \S+/labels, the store beside it"):
        LogitStore.open(tmp_path / "labels.parquet")


def test_refresh_sees_other_writers(place: Place) -> None:
    writer = LogitStore.create(place.uri, make_manifest(), storage_options=place.storage_options)
    reader = LogitStore.open(place.uri, storage_options=place.storage_options)
    commit(writer, 0)
    assert len(reader.shards()) == 0
    reader.refresh()
    assert len(reader.shards()) == 1
    commit(writer, 1)
    writer.compact()
    commit(writer, 2)
    reader.refresh()
    assert [entry.unit_index for entry in reader.shards()] == [0, 1, 2]


def test_the_digest_is_of_the_data(local_place: Place, tmp_path) -> None:
    store = LogitStore.create(local_place.uri, make_manifest())
    empty = store.digest
    commit(store, 0)
    one = store.digest
    commit(store, 1)
    assert len({empty, one, store.digest}) == 3
    same = LogitStore.create(tmp_path / "same", make_manifest(note="another config"))
    commit(same, 1)
    commit(same, 0)
    assert same.digest == store.digest
    other = LogitStore.create(tmp_path / "other", make_manifest(model="other"))
    assert other.digest != empty


def test_a_pickled_store_opens_anew(local_place: Place) -> None:
    store = LogitStore.create(local_place.uri, make_manifest())
    copy = pickle.loads(pickle.dumps(store))
    commit(store, 0)
    copy.refresh()
    assert copy.digest == store.digest


def test_bad_labels_and_names_leave_nothing(local_place: Place) -> None:
    store = LogitStore.create(local_place.uri, make_manifest(4))
    with pytest.raises(InvalidLabelsError):
        store.commit_unit("u", 0, [make_sequence("a", top_k=8)], seconds=0, worker="w")
    for unit_id in ("../u", "", "a/b", "x" * 129):
        with pytest.raises(UnsafeNameError):
            store.commit_unit(unit_id, 0, [], seconds=0, worker="w")
    with pytest.raises(CorruptManifestError, match="unit_index -1"):
        store.commit_unit("u", -1, [], seconds=0, worker="w")
    assert store.objects.list() == ["index.json", "manifest.json"]


@pytest.mark.parametrize(
    "config",
    [
        {"output": {"storage_options": {"key": "hunter2"}}},
        {"input": {"storage_options": {"client": {"secret": "hunter2"}}}},
        {"env": [{"AWS_SECRET_ACCESS_KEY": "hunter2"}]},
        {"hf_token": "hunter2"},
        {"api-key": "hunter2"},
    ],
)
def test_secrets_do_not_enter_a_manifest(local_place: Place, config: dict[str, Any]) -> None:
    with pytest.raises(SecretInManifestError) as caught:
        LogitStore.create(local_place.uri, make_manifest(**config))
    assert "hunter2" not in str(caught.value)
    assert not store_exists(local_place)
    LogitStore.create(
        local_place.uri,
        make_manifest(
            max_tokens=5, secret="***", storage_options={"key": "***", "anon": False, "endpoint": "e"}
        ),
    )


def store_exists(place: Place) -> bool:
    try:
        LogitStore.open(place.uri)
    except StoreNotFoundError:
        return False
    return True


def test_reading_through_any_file_system(local_place: Place) -> None:
    store = LogitStore.create(local_place.uri, make_manifest())
    commit(store, 0)
    commit(store, 1)
    store.compact()
    commit(store, 2)
    memory = Objects("memory://store-test/copy")
    for name in store.objects.list():
        memory.put(name, store.objects.get(name))
    copy = LogitStore.open(memory.uri)
    assert copy.digest == store.digest
    assert [item.record_id for item in copy.iter_sequences()] == [
        item.record_id for item in store.iter_sequences()
    ]


def test_shards_from_before_and_after_the_codebooks(local_place: Place) -> None:
    store = LogitStore.create(local_place.uri, make_manifest())
    commit(store, 0)
    trained = train_codebooks((item.rows for item in store.iter_sequences()), store.manifest.labels)
    assert store.set_codebooks(trained).hash == trained.hash
    commit(store, 1)
    other = LogitStore.open(local_place.uri)
    assert other.manifest.codebooks == trained.hash
    names = [item.record_id for item in other.iter_sequences()]
    assert names == [f"record-{index}" for index in range(6)]
    rival = train_codebooks((item.rows for item in store.iter_sequences()), store.manifest.labels, seed=1)
    assert other.set_codebooks(rival).hash == trained.hash, "the first set stays"
