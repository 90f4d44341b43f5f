"""Files of format version 1 as they were written when it was frozen: they are read, and written again, forever."""

import hashlib
import io

import numpy as np
import pytest
import zstandard

from logitstore.codec.codebooks import CodebookSet
from logitstore.index.commits import decode_commit, encode_commit
from logitstore.index.pointer import decode_pointer, encode_pointer
from logitstore.manifest.reading import decode_manifest, encode_manifest
from logitstore.shard.reader import ShardReader
from logitstore.shard.writer import write_shard
from logitstore.store import LogitStore
from logitstore.tools.verify import verify_store
from tests.golden.v1.make_golden import FOLDER, golden_codebooks, golden_sequences

DIGESTS = {
    "codebooks.bin": "455713e703c743588392327a12219f1d",
    "gap_f16.arrow": "c91edb9c19bcd0753573801af67c87f0",
    "logit_f16.arrow": "2a12ac392dbc2ce2bd7f282c61ee512d",
}
FIRST_IDS = [29, 28, 198, 79, 506]
FIRST_LOGITS = [
    27.385822296142578,
    25.600666046142578,
    25.116291046142578,
    24.948322296142578,
    24.737384796142578,
]
FIRST_LOGSUMEXP = [28.251079559326172, 17.99814796447754, 14.118306159973145]
FIRST_TAILS = [-1.3447265625, -0.060546875, -0.005859375]


def codebooks_of(value_kind):
    if value_kind == "logit_f16":
        return None
    return CodebookSet.from_bytes((FOLDER / "codebooks.bin").read_bytes())


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_golden_files_are_untouched(name):
    assert hashlib.blake2b((FOLDER / name).read_bytes(), digest_size=16).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("value_kind", ["gap_f16", "logit_f16"])
def test_golden_shards_are_read_as_they_were_written(value_kind):
    spec, sequences = golden_sequences(value_kind)
    with open(FOLDER / f"{value_kind}.arrow", "rb") as file:
        back = list(ShardReader(file, spec, codebooks_of(value_kind)).iter_sequences())
    assert [sequence.record_id for sequence in back] == ["document-0", "запись-δ-記録", ""]
    assert back[1].flags == ("truncated", "repeated")
    assert (back[1].sample_index, back[1].prompt_length, back[1].label_start) == (3, 7, 5)
    assert back[1].finish_reason == "length"
    assert back[2].rows.num_rows == 0
    for before, after in zip(sequences, back, strict=True):
        np.testing.assert_array_equal(after.loss_mask_N, before.loss_mask_N)
        np.testing.assert_array_equal(after.token_ids_T, before.token_ids_T)
        np.testing.assert_array_equal(after.rows.count_N, before.rows.count_N)
        real = np.isfinite(after.rows.logits_NK[:, : before.rows.logits_NK.shape[1]])
        found, given = after.rows.logits_NK[:, : real.shape[1]][real], before.rows.logits_NK[real]
        np.testing.assert_allclose(found, given, atol=0.0079 if value_kind == "gap_f16" else 0)
        for found_ids, given_ids, count in zip(
            after.rows.token_ids_NK, before.rows.token_ids_NK, before.rows.count_N, strict=True
        ):
            assert sorted(found_ids[:count]) == sorted(given_ids[:count])


def test_the_first_label_row_holds_these_numbers():
    spec, _ = golden_sequences("gap_f16")
    with open(FOLDER / "gap_f16.arrow", "rb") as file:
        rows = ShardReader(file, spec, codebooks_of("gap_f16")).read_block(0)[0].rows
    assert rows.token_ids_NK[0, :5].tolist() == FIRST_IDS
    np.testing.assert_array_equal(rows.logits_NK[0, :5], np.array(FIRST_LOGITS, np.float32))
    np.testing.assert_array_equal(rows.logsumexp_NM[0], np.array(FIRST_LOGSUMEXP, np.float32))
    np.testing.assert_array_equal(rows.log_tail_mass_NM[0], np.array(FIRST_TAILS, np.float32))


@pytest.mark.skipif(
    zstandard.ZSTD_VERSION != (1, 5, 7), reason="another libzstd may compress the same streams differently"
)
@pytest.mark.parametrize("value_kind", ["gap_f16", "logit_f16"])
def test_the_writer_still_gives_these_bytes(value_kind):
    spec, sequences = golden_sequences(value_kind)
    buffer = io.BytesIO()
    stats = write_shard(buffer, sequences, spec, codebooks_of(value_kind))
    assert stats.checksum == "blake2b-128:" + DIGESTS[f"{value_kind}.arrow"]
    assert buffer.getvalue() == (FOLDER / f"{value_kind}.arrow").read_bytes()


def test_training_still_gives_these_codebooks():
    assert golden_codebooks().hash == "blake2b-128:" + DIGESTS["codebooks.bin"]


def test_a_codebook_file_starts_with_these_bytes():
    data = (FOLDER / "codebooks.bin").read_bytes()
    assert data.startswith(b"logitstore-codebooks-1\n\x00\xc0\x00\x00")


STORE_FILES = {
    "manifest.json": "a4141258120758407ae80a440d4ccf2b",
    "index.json": "21617f9cba1a0485e724227d89997082",
    "commits/unit-0002.json": "a2e783f7c274f5546aad0d5e2d8a3c09",
    "index/7150f31b90cda115.arrow": "9c4f2a57e081dda4b2c2fb4b686806d0",
    "index/7150f31b90cda115-rejects.arrow": "fd22ccb076c46928d5aeb38237e10911",
}


@pytest.mark.parametrize("name", STORE_FILES)
def test_golden_store_is_untouched(name):
    data = (FOLDER / "store" / name).read_bytes()
    assert hashlib.blake2b(data, digest_size=16).hexdigest() == STORE_FILES[name]


def test_golden_store_is_read_as_it_was_written():
    store = LogitStore.open(FOLDER / "store")
    assert store.digest == "2902ac50a8c7a30020e00265d412f9aa"
    assert [(entry.unit_index, entry.unit_id, entry.num_rows, entry.worker) for entry in store.shards()] == [
        (0, "unit-0000", 11, "worker-0"),
        (1, "unit-0001", 0, "worker-1"),
        (2, "unit-0002", 11, "worker-1"),
    ]
    assert [(reject.line, reject.kind) for reject in store.rejects()] == [
        (7, "invalid_json"),
        (8, "invalid_json"),
    ]
    assert [sequence.record_id for sequence in store.iter_sequences()] == ["record-0", "record-2"]
    assert verify_store(store).problems == []


def test_what_a_store_keeps_as_json_is_still_written_in_these_bytes():
    folder = FOLDER / "store"
    manifest = (folder / "manifest.json").read_bytes()
    assert encode_manifest(decode_manifest(manifest)) == manifest
    commit = (folder / "commits/unit-0002.json").read_bytes()
    assert encode_commit(decode_commit(commit, what="commits/unit-0002.json")) == commit
    assert commit.startswith(
        b'{"attempt":"6ce579198598ddd0","format_version":1,"manifest":"c6b5b1b1f84f1927909cd39860cf22bc",'
    )
    index = (folder / "index.json").read_bytes()
    assert encode_pointer(decode_pointer(index)) == index
