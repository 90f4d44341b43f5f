"""Every way the columns of a shard can be bad end in one of the format's errors, never in anything else."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.errors import CorruptShardError, UnsupportedFormatError
from logitstore.shard.reader import ShardReader
from logitstore.shard.writer import write_shard
from tests.logitstore.capture import load_capture
from tests.logitstore.shard.damaged import (
    BOOKS,
    REFUSED,
    SHARD,
    SPEC,
    read_all,
    rewritten,
    set_all,
    with_streams,
    zeros,
)


def test_the_untouched_shard_is_read():
    assert len(read_all(SHARD)) == 3
    assert read_all(rewritten(lambda values: None))[0].record_id == "document-0"


@pytest.mark.parametrize("length", [0, 1, 31, 100, len(SHARD) // 2, len(SHARD) - 1])
def test_truncated(length):
    with pytest.raises(CorruptShardError, match=r"truncated|claims"):
        read_all(SHARD[:length])


@pytest.mark.parametrize("part", range(64))
def test_a_flipped_bit_is_found_or_harmless(part):
    """A seventh of all bytes, in 64 turns; what is not refused (padding, unused header fields) changes nothing."""
    expected = read_all(SHARD)
    for offset in range(part, len(SHARD), 64 * 7):
        damaged = bytearray(SHARD)
        damaged[offset] ^= 1 << (offset % 8)
        try:
            found = read_all(bytes(damaged))
        except REFUSED:
            continue
        for before, after in zip(expected, found, strict=True):
            assert before.record_id == after.record_id
            np.testing.assert_array_equal(before.token_ids_T, after.token_ids_T)
            np.testing.assert_array_equal(before.rows.logits_NK, after.rows.logits_NK)
            np.testing.assert_array_equal(before.rows.token_ids_NK, after.rows.token_ids_NK)
            np.testing.assert_array_equal(before.rows.log_tail_mass_NM, after.rows.log_tail_mass_NM)


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({b"version": b"2"}, UnsupportedFormatError, "version '2'"),
        ({b"format": b"other"}, UnsupportedFormatError, "format 'other'"),
        ({b"features": b'["holograms"]'}, UnsupportedFormatError, "holograms"),
        ({b"features": b"[["}, CorruptShardError, "metadata"),
        ({b"features": b"[[]]"}, CorruptShardError, "list of strings"),
        ({b"features": b"5"}, CorruptShardError, "list of strings"),
        ({b"vocab_size": b"9"}, CorruptShardError, "vocab_size 9"),
        ({b"top_k": b"many"}, CorruptShardError, "metadata"),
        ({b"top_k": b"\xff"}, CorruptShardError, "UTF-8"),
        ({b"temperatures": b"1.0"}, CorruptShardError, "metadata"),
        ({b"codebooks": b"blake2b-128:00"}, CorruptShardError, "codebooks"),
        ({b"temperatures": b"[1.0]"}, CorruptShardError, "temperatures"),
        ({b"temperatures": b'["1", "2", "4"]'}, CorruptShardError, "no list of numbers"),
        ({b"temperatures": b'{"1": 0, "2": 0, "4": 0}'}, CorruptShardError, "no list of numbers"),
        ({b"top_k": f" {SPEC.top_k}".encode()}, CorruptShardError, "no decimal number"),
        ({b"vocab_size": f"{SPEC.vocab_size:_d}".encode()}, CorruptShardError, "no decimal number"),
    ],
)
def test_foreign_metadata(metadata, error, message):
    with pytest.raises(error, match=message):
        read_all(rewritten(lambda values: None, metadata=metadata))


def test_numbers_in_metadata_are_compared_as_numbers():
    """Another writer's JSON may have other spaces and no decimal points."""
    metadata = {b"temperatures": b"[1,2, 4.00]"}
    assert len(read_all(rewritten(lambda values: None, metadata=metadata))) == 3


def set_first(value, stream=0, at=0):
    def change(parts):
        parts[stream][at] = value

    return change


def set_ranks(parts):
    """All ranks that are stored beside the entries become 2^24 - 1."""
    assert parts[1].size
    for plane in (1, 2, 3):
        parts[plane][:] = 255


def raise_sizes(values):
    """A stream that declares far more than the rows need: a decompression bomb."""
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    body = struct.pack("<2I", 1 << 28, len(bomb)) + bomb
    values["loss_mask"] = body + struct.pack("<I", zlib.crc32(body))


def lie_about_content(values):
    """A frame of 2^28 bytes behind an honest raw size."""
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    body = struct.pack("<2I", 10, len(bomb)) + bomb
    values["loss_mask"] = body + struct.pack("<I", zlib.crc32(body))


def claim_a_billion_rows(values):
    values["num_rows"] = [1 << 30, 40, 0]


BAD_COLUMNS = {
    "id beyond the vocabulary": (
        with_streams("ids_0_8", 4, lambda p: [p[0], set_all(p[1], 255), zeros(0), zeros(2 * p[1].size)]),
        "sequence|position",
    ),
    "codebook choice": (with_streams("codebook_choice", 1, set_first(200)), "codebook 200 of 4"),
    "class threshold": (with_streams("values_0_8", 4, set_first(0)), "threshold 0"),
    "NaN normaliser": (
        with_streams("normalizers", 9, set_first(255, stream=2)),
        "normaliser is infinite or NaN",
    ),
    "infinite top": (
        with_streams(
            "top_logits",
            4,
            lambda p: [zeros(p[0].size), zeros(p[0].size), set_all(p[2], 128), set_all(p[3], 127)],
        ),
        "top logit",
    ),
    "label source": (with_streams("label", 7, set_first(77)), "declares|label source"),
    "label rank": (with_streams("label", 7, set_ranks), "in a vocabulary of"),
    "counts beside full rows": (
        with_streams("counts", 4, lambda p: [np.ones(1, np.uint8), zeros(80), zeros(80), zeros(80)]),
        "declares 80 bytes",
    ),
    "count of zero": (
        with_streams("counts", 4, lambda p: [zeros(1), zeros(80), zeros(80), zeros(80)]),
        "entries per row",
    ),
    "infinite value": (
        with_streams(
            "values_0_8", 4, lambda p: [p[0], set_all(p[1], 223), set_all(zeros(p[1].size), 255), zeros(0)]
        ),
        "value pattern",
    ),
    "first gap": (with_streams("values_0_8", 4, set_first(1, stream=1)), "starts with a gap other than 0"),
    "value step": (
        with_streams("values_0_8", 4, lambda p: [p[0], set_all(p[1], 255), zeros(0), zeros(2 * p[1].size)]),
        "beyond 16 bits",
    ),
    "bomb": (raise_sizes, "declares 268435456 bytes"),
    "lying frame": (lie_about_content, "frame declares 268435456"),
    "rows": (claim_a_billion_rows, "CRC-32"),
    "stream table": (lambda values: values.update(label=values["label"][:20]), "table of sizes"),
    "offsets": (lambda values: values.update(tails=values["tails"] + b"x"), "add up"),
    "checksum": (lambda values: values.update(tails=values["tails"][:-1] + b"\x00"), "CRC-32"),
    "sequence text": (lambda values: values.update(record_id=["a", "b", "c"]), "CRC-32"),
    "sequence count": (lambda values: values.update(num_tokens=[1]), "CRC-32"),
}


@pytest.mark.parametrize("name", sorted(BAD_COLUMNS))
def test_bad_column(name):
    change, message = BAD_COLUMNS[name]
    with pytest.raises(CorruptShardError, match=message):
        read_all(rewritten(change))


@pytest.mark.parametrize(
    ("column", "items", "message"),
    [
        ("num_rows", [1 << 30, 40, 0], "does not allow"),
        ("num_rows", [-1, 81, 0], "does not allow"),
        ("num_tokens", [5], "does not allow"),
        ("label_start", [0, 5, 1], "label_start 0"),
        ("prompt_length", [41, 7, 0], "prompt of 41"),
        ("flags", ["[1]", "", ""], "list of strings"),
        ("flags", ["[" * 5000, "", ""], "JSON"),
    ],
)
def test_bad_sequences_are_refused_even_without_checksums(column, items, message):
    data = rewritten(lambda values: values.update({column: items}))
    with pytest.raises(CorruptShardError, match=message):
        read_all(data, verify_checksums=False)


@pytest.mark.filterwarnings("error")
def test_an_absurd_normaliser_is_read_in_silence():
    """Finite, so a block's checksum is all that could tell; a mass is at most 1 whatever it says."""
    high = with_streams("normalizers", 9, lambda p: [set_all(plane, 254) for plane in p])
    reader = ShardReader(io.BytesIO(rewritten(high)), SPEC, BOOKS)
    for sequence in reader.iter_sequences(top_k=3):
        assert (sequence.rows.log_tail_mass_NM <= 0).all()
    with pytest.raises(CorruptShardError, match="mass"):
        reader.check_block(0)


def test_duplicate_ids_are_found_by_the_deep_check():
    def repeat(parts):
        parts[1][:40] = parts[1][40:80] = 3  # ranks 1 and 2 of the first rows at the same position
        below = parts[1] < parts[0][0]
        return [parts[0], np.where(below, parts[1], 3).astype(np.uint8), zeros(0), zeros(0)]

    data = rewritten(with_streams("ids_0_8", 4, repeat))
    reader = ShardReader(io.BytesIO(data), SPEC, BOOKS)
    reader.read_block(0)
    with pytest.raises(CorruptShardError, match="an id twice"):
        reader.check_block(0)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_fuzzed_shards_are_refused_or_read(data):
    """Several bytes overwritten, checksums not looked at: only the format's own errors may come out."""
    damaged = bytearray(SHARD)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        replacement = data.draw(st.binary(min_size=1, max_size=8))
        damaged[at : at + len(replacement)] = replacement
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    with contextlib.suppress(*REFUSED):
        read_all(bytes(damaged), verify_checksums=False)


def test_a_label_that_refers_to_an_entry_that_is_not_there():
    spec, sequences = load_capture(4)
    buffer = io.BytesIO()
    write_shard(buffer, sequences[:1], spec, None)
    change = with_streams("label", 7, lambda p: [set_all(p[0], 7), *[zeros(0)] * 6])
    reader = ShardReader(io.BytesIO(rewritten(change, buffer.getvalue())), spec, None)
    with pytest.raises(CorruptShardError, match="an entry that its row does not have"):
        reader.read_block(0)
