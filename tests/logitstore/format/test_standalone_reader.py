"""The reader of one file, written from FORMAT.md with numpy, pyarrow and zstandard, agrees bit for bit.

It shares no code with the rest of `logitstore`.
"""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from logitstore import standalone_reader
from logitstore.codec.codebook_training import train_codebooks
from logitstore.manifest.reading import encode_manifest, manifest_hash
from logitstore.rows.temperature import truncate
from logitstore.shard.reader import ShardReader
from logitstore.shard.writer import write_shard
from logitstore.standalone_reader import NotReadableError, read_block, read_codebooks, read_store
from logitstore.store import LogitStore
from logitstore.tools.deletion import delete_records
from tests.golden.v1.make_golden import FOLDER
from tests.logitstore.capture import load_capture
from tests.logitstore.random_labels import commit_units, make_manifest, make_unit
from tests.logitstore.shard.test_segments import make_store as make_segmented
from tests.logitstore.shard.test_student_prompts import make_store as make_prompted
from tests.trainer.stores import make_store


@pytest.mark.parametrize("value_kind", ["gap_f16", "logit_f16"])
@pytest.mark.parametrize("num_codebooks", [0, 1, 8])
def test_it_agrees_bit_for_bit(value_kind, num_codebooks):
    spec, sequences = load_capture(20, value_kind)
    cut = truncate(sequences[1].rows, spec, 11)  # a ragged sequence
    sequences = [sequences[0], replace(sequences[1], rows=cut), sequences[3]]
    books = None
    if num_codebooks:
        rows = (sequence.rows for sequence in sequences)
        books = train_codebooks(rows, spec, max_codebooks=num_codebooks, expected_rows=10**6)
        assert books.num_codebooks == num_codebooks
    buffer = io.BytesIO()
    write_shard(buffer, sequences, spec, books)
    file = pa.ipc.open_file(buffer)
    metadata = {key.decode(): value.decode() for key, value in file.schema.metadata.items()}
    order, heads = np.arange(spec.vocab_size), np.zeros((1, 0), int)
    if books is not None:
        order, heads = read_codebooks(books.to_bytes())
    blocks = [read_block(file.get_batch(i), metadata, order, heads) for i in range(file.num_record_batches)]
    ours = list(ShardReader(buffer, spec, books).iter_sequences())
    for name in blocks[0]:
        theirs = np.concatenate([block[name] for block in blocks])
        np.testing.assert_array_equal(
            np.concatenate([getattr(sequence.rows, name) for sequence in ours]), theirs, err_msg=name
        )


def assert_same_store(folder: Path) -> None:
    ours, theirs = list(LogitStore.open(folder).iter_sequences()), list(read_store(folder))
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for name in ("record_id", "sample_index", "prompt_length", "label_start", "finish_reason", "flags"):
            assert getattr(one, name) == other[name]
        np.testing.assert_array_equal(one.token_ids_T, other["token_ids_T"])
        np.testing.assert_array_equal(one.loss_mask_N, other["loss_mask_N"])
        for name in ("logits_NK", "token_ids_NK", "count_N", "logsumexp_NM", "log_tail_mass_NM"):
            np.testing.assert_array_equal(getattr(one.rows, name), other[name], err_msg=name)
        np.testing.assert_array_equal(one.rows.label_logprob_N, other["label_logprob_N"])
        np.testing.assert_array_equal(one.rows.label_rank_N, other["label_rank_N"])
        for name in ("segments_T", "student_prompt_ids"):
            assert (getattr(one, name) is None) == (other[name] is None)
            if other[name] is not None:
                np.testing.assert_array_equal(getattr(one, name), other[name])


def test_it_reads_the_golden_store_and_one_of_today(tmp_path: Path) -> None:
    assert_same_store(FOLDER / "store")
    make_store(tmp_path / "store")
    assert_same_store(tmp_path / "store")


@pytest.mark.parametrize("make", [make_segmented, make_prompted], ids=["segments", "student_prompts"])
def test_it_reads_optional_columns(make: Callable[[Path], LogitStore], tmp_path: Path) -> None:
    make(tmp_path / "store")
    assert_same_store(tmp_path / "store")


def test_it_skips_what_was_taken_down_or_uncommitted(tmp_path: Path) -> None:
    store = LogitStore.create(tmp_path / "store", make_manifest())
    commit_units(store, range(3))
    names = [sequence.record_id for sequence in store.iter_sequences()]
    store.compact()
    delete_records(store, frozenset({names[0], names[-1]}), "a test")
    assert_same_store(tmp_path / "store")
    left = [sequence["record_id"] for sequence in read_store(tmp_path / "store")]
    assert left == [name for name in names if name not in (names[0], names[-1])]
    store = LogitStore.open(tmp_path / "store")
    gone = list(store.shards())[1]
    store.uncommit([gone.name])
    assert_same_store(tmp_path / "store")
    unit_id, sequences = make_unit(1)
    LogitStore.open(tmp_path / "store").commit_unit(unit_id, 1, sequences, [], seconds=1, worker="again")
    assert_same_store(tmp_path / "store")


def test_it_refuses_what_it_does_not_know_or_what_is_damaged(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    shard = min((tmp_path / "store" / "shards").glob("*.arrow"))
    shutil.copytree(tmp_path / "store", tmp_path / "damaged")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged" / "shards" / shard.name).write_bytes(data)
    with pytest.raises(NotReadableError, match="has another checksum"):
        list(read_store(tmp_path / "damaged"))
    path = tmp_path / "store" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "features": ["sampled_entries"]}))
    with pytest.raises(NotReadableError, match=r"has the features \['sampled_entries'\]"):
        list(read_store(tmp_path / "store"))


def test_whatever_is_damaged_or_missing_is_refused_in_words(tmp_path: Path) -> None:
    """A missing object, or JSON that was cut, ended in an error of some library; a changed manifest was read."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    commit_units(store, range(2))
    store.compact()
    delete_records(store, frozenset({next(iter(store)).record_id}), "a test")
    store.uncommit([list(store.shards())[1].name])
    commit_units(store, range(2, 3))
    assert_same_store(tmp_path / "store")
    index = (tmp_path / "store/index.json").read_text()
    objects = [one for one in (tmp_path / "store").rglob("*") if one.suffix in (".json", ".arrow")]
    for path in objects:
        if "unit-0001" in path.name or (path.parent.name == "index" and path.name not in index):
            continue  # garbage
        data = path.read_bytes()
        for damaged in (b"", data[: len(data) // 2], data.replace(b"_", b"-", 1)):
            path.write_bytes(damaged)
            with pytest.raises(NotReadableError):
                list(read_store(tmp_path / "store"))
        path.unlink()
        if path.parent.name != "commits":  # whose absence says that the unit is not committed
            with pytest.raises(NotReadableError):
                list(read_store(tmp_path / "store"))
        path.write_bytes(data)
    assert_same_store(tmp_path / "store")


def test_labels_that_nothing_names_and_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    """A store without its index read as an empty one, and a record could name any file."""
    store = LogitStore.create(tmp_path / "store", make_manifest())
    empty = (tmp_path / "store/index.json").read_bytes()
    commit_units(store, range(2))
    record = tmp_path / "store/commits/unit-0000.json"
    value = json.loads(record.read_text())
    record.write_text(json.dumps({**value, "shard": {**value["shard"], "name": "shards/../../shard.arrow"}}))
    with pytest.raises(NotReadableError, match="names another shard"):
        list(read_store(tmp_path / "store"))
    record.write_text(json.dumps(value))
    store.compact()
    (tmp_path / "store/index.json").write_bytes(empty)
    with pytest.raises(NotReadableError, match=r"index.json does not name"):
        list(read_store(tmp_path / "store"))


def test_the_hash_of_a_manifest_leaves_out_what_absence_says() -> None:
    manifest = make_manifest()
    value = json.loads(encode_manifest(manifest))
    assert standalone_reader.manifest_hash(value) == manifest_hash(manifest)
    value["labels"] |= {"support": "top", "extra_columns": [], "temperatures": [1, 2, 4]}
    value |= {"created": "now", "config": {"a": 1}, "retokenized": None}
    assert standalone_reader.manifest_hash(value) == manifest_hash(manifest)


def test_the_file_alone_is_enough(tmp_path: Path) -> None:
    shutil.copy(standalone_reader.__file__, tmp_path / "reader.py")
    make_store(tmp_path / "store")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['logitstore'] = None; import runpy; "
         "sys.argv = ['reader.py', 'store']; runpy.run_path('reader.py', run_name='__main__'); "
         "print('fsspec' in sys.modules, 'pydantic' in sys.modules)"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + len(list(LogitStore.open(tmp_path / "store").iter_sequences()))
    assert lines[-1] == "False False"
