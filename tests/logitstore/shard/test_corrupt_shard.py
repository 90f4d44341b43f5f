"""Every way a shard or codebook file can be bad ends in one of the format's errors, never in anything else."""

import contextlib
import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.codec.bytecodes import encode_integers
from logitstore.codec.codebooks import MAGIC, CodebookSet
from logitstore.codec.streams import pack
from logitstore.errors import CorruptShardError, InvalidLabelsError, UnsupportedFormatError
from logitstore.shard.arrow_file import ArrowFile
from logitstore.shard.reader import ShardReader
from logitstore.shard.sequence_columns import BlockLayout
from logitstore.shard.writer import write_shard
from tests.golden.v1.make_golden import FOLDER, golden_sequences
from tests.logitstore.capture import load_capture

SPEC = golden_sequences("gap_f16")[0]
SHARD = (FOLDER / "gap_f16.arrow").read_bytes()
CODEBOOKS = (FOLDER / "codebooks.bin").read_bytes()
BOOKS = CodebookSet.from_bytes(CODEBOOKS)
REFUSED = (CorruptShardError, UnsupportedFormatError)


def read_all(data, *, verify_checksums=True):
    reader = ShardReader(io.BytesIO(data), SPEC, BOOKS, verify_checksums=verify_checksums)
    return list(reader.iter_sequences())


def rewritten(change, data=SHARD, metadata=None):
    """The shard with its columns (and metadata) changed and written by a general Arrow writer."""
    reader = pa.ipc.open_file(io.BytesIO(data))
    values = {name: reader.get_batch(0).column(name)[0].as_py() for name in reader.schema.names}
    change(values)
    schema = reader.schema.with_metadata({**reader.schema.metadata, **(metadata or {})})
    arrays = [pa.array([values[name]], field.type) for name, field in zip(schema.names, schema, strict=True)]
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return sink.getvalue()


def streams(packed, count):
    """Raw streams of a packed column."""
    sizes = struct.unpack_from(f"<{2 * count}I", packed)
    at, found = 8 * count, []
    for raw, stored in zip(sizes[::2], sizes[1::2], strict=True):
        data = packed[at : at + stored]
        at += stored
        found.append(np.frombuffer(data if raw == stored else zstandard.decompress(data), np.uint8).copy())
    return found


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


def with_streams(column, count, change):
    def apply(values):
        parts = streams(values[column], count)
        values[column] = pack(change(parts) or parts)

    return apply


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


def zeros(size):
    return np.zeros(size, np.uint8)


def set_all(array, value):
    return np.full(array.size, value, np.uint8)


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


def test_body_compression_is_refused():
    reader = pa.ipc.open_file(io.BytesIO(SHARD))
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, reader.schema, options=options) as writer:
        writer.write_batch(reader.get_batch(0))
    with pytest.raises(CorruptShardError, match="body compression"):
        read_all(sink.getvalue())


def nullable_counts(fields):
    return [field.with_nullable(True) if field.name == "counts" else field for field in fields]


@pytest.mark.parametrize(
    "change",
    [
        nullable_counts,
        lambda fields: fields[:-1],
        lambda fields: [*fields[:-2], fields[-1], fields[-2]],
        lambda fields: [*fields, pa.field("sampled_ids", pa.binary(), nullable=False)],
    ],
    ids=["nullable", "one less", "another order", "one more"],
)
def test_columns_that_are_not_those_of_the_format(change):
    reader = pa.ipc.open_file(io.BytesIO(SHARD))
    fields = change(list(reader.schema))
    held = set(reader.schema.names)
    arrays = [
        reader.get_batch(0).column(field.name) if field.name in held else pa.array([b""]) for field in fields
    ]
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, pa.schema(fields, metadata=reader.schema.metadata)) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=pa.schema(fields)))
    with pytest.raises(CorruptShardError, match="columns are not those of its format"):
        read_all(sink.getvalue())


def test_two_rows_in_a_batch_are_refused():
    reader = pa.ipc.open_file(io.BytesIO(SHARD))
    batch = reader.get_batch(0)
    two = pa.Table.from_batches([batch, batch]).combine_chunks().to_batches()[0]
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, reader.schema) as writer:
        writer.write_batch(two)
    with pytest.raises(CorruptShardError, match="exactly one row"):
        read_all(sink.getvalue())


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


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_fuzzed_codebooks_are_refused_or_read(data):
    damaged = bytearray(CODEBOOKS)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    body = bytes(damaged[len(MAGIC) + 16 : -4])
    damaged[-4:] = struct.pack("<I", zlib.crc32(body))
    with contextlib.suppress(*REFUSED):
        CodebookSet.from_bytes(bytes(damaged))


@pytest.mark.parametrize("length", [0, 10, len(MAGIC), len(MAGIC) + 15, 200, len(CODEBOOKS) - 1])
def test_truncated_codebooks(length):
    with pytest.raises(REFUSED):
        CodebookSet.from_bytes(CODEBOOKS[:length])


def test_codebooks_of_another_vocabulary_are_refused():
    with pytest.raises((CorruptShardError, InvalidLabelsError)):
        ShardReader(io.BytesIO(SHARD), replace(SPEC, vocab_size=50_000), BOOKS)


def with_offsets(column, buffer, offsets):
    """The shard with an offsets buffer of a column overwritten in place, as no library would write it."""
    header = ArrowFile(io.BytesIO(SHARD)).batch_header(0)
    first = BlockLayout.of(SPEC, True).first_buffer[column]
    at = header.body_offset + header.buffers[first + buffer][0]
    data = bytearray(SHARD)
    struct.pack_into(f"<{len(offsets)}i", data, at, *offsets)
    return bytes(data)


@pytest.mark.parametrize(
    ("column", "buffer", "offsets", "message"),
    [
        ("record_id", 3, [0, 10, 5, 29], "string offsets that fall"),
        ("record_id", 3, [-4, 0, 5, 29], "string offsets that fall"),
        ("record_id", 3, [0, 10, 29, 1 << 30], "string offsets that fall or leave"),
        ("num_rows", 1, [3, 0], r"items 3\.\.0 of 3"),
        ("num_rows", 1, [0, 1 << 30], r"items 0\.\.1073741824 of 3"),
        ("tails", 1, [8, 4], r"offsets 8\.\.4"),
        ("tails", 1, [0, 1 << 30], r"offsets 0\.\.1073741824"),
    ],
)
def test_offsets_that_go_backwards_or_too_far(column, buffer, offsets, message):
    with pytest.raises(CorruptShardError, match=message):
        read_all(with_offsets(column, buffer, offsets), verify_checksums=False)


@pytest.mark.parametrize("offset", [0, -(1 << 40), 1 << 40])
def test_blocks_that_overlap_or_leave_the_file(offset):
    """The footer keeps (offset i64, metadata bytes i32, padding, body bytes i64) of each record batch."""
    data = bytearray(SHARD)
    footer = len(data) - 10 - struct.unpack_from("<i", data, len(data) - 10)[0]
    (block,) = ArrowFile(io.BytesIO(SHARD)).blocks
    struct.pack_into("<q", data, data.index(struct.pack("<qi", *block[:2]), footer), offset)
    with pytest.raises(CorruptShardError, match="outside the file or over the block before it"):
        read_all(bytes(data))


HEADER = ArrowFile(io.BytesIO(SHARD)).batch_header(0)
((BLOCK, METADATA_BYTES, BODY_BYTES),) = ArrowFile(io.BytesIO(SHARD)).blocks
FOOTER = len(SHARD) - 10 - struct.unpack_from("<i", SHARD, len(SHARD) - 10)[0]
LAYOUT = BlockLayout.of(SPEC, True)
FAR = 0xFFFFFFF0


def at_buffer(column, buffer):
    """Where the header keeps the (offset i64, length i64) of one buffer."""
    found = HEADER.buffers[LAYOUT.first_buffer[column] + buffer]
    return SHARD.index(struct.pack("<qq", *found), BLOCK)


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (len(SHARD) - 10, "<i", len(SHARD), "footer claims"),
        (len(SHARD) - 10, "<i", -1, "footer claims"),
        (0, "<I", 0, "does not start as an Arrow IPC file"),
        (12, "<i", 1 << 30, "schema cannot be read"),
        (FOOTER, "<I", FAR, "footer cannot be parsed"),
        (BLOCK, "<I", 0, "does not start with an Arrow message"),
        (BLOCK + 4, "<i", METADATA_BYTES, "does not start with an Arrow message"),
        (BLOCK + 8, "<I", FAR, "header of block 0 cannot be parsed"),
        (SHARD.index(struct.pack("<qi", BLOCK, METADATA_BYTES), FOOTER) + 16, "<q", BODY_BYTES - 8, "footer says"),
        (at_buffer("tails", 2), "<q", 1 << 40, "buffers outside its body"),
        (at_buffer("tails", 2), "<q", BODY_BYTES - 1, "buffers outside its body"),
        (at_buffer("num_rows", 3) + 8, "<q", 4, "too short for 3 integers"),
        (SHARD.index(struct.pack("<I", LAYOUT.num_buffers), BLOCK), "<I", 7, "nodes and buffers of its schema"),
        (HEADER.body_offset + HEADER.buffers[LAYOUT.first_buffer["record_id"] + 4][0], "<B", 255, "not UTF-8"),
    ],
)  # fmt: skip
def test_framing_that_lies(at, form, value, message):
    data = bytearray(SHARD)
    struct.pack_into(form, data, at, value)
    with pytest.raises(CorruptShardError, match=message):
        read_all(bytes(data), verify_checksums=False)


def test_dictionaries_are_refused():
    sink = io.BytesIO()
    table = pa.table({"a": pa.array(["x", "x"]).dictionary_encode()})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(CorruptShardError, match="dictionaries"):
        read_all(sink.getvalue())


def test_a_label_that_refers_to_an_entry_that_is_not_there():
    spec, sequences = load_capture(4)
    buffer = io.BytesIO()
    write_shard(buffer, sequences[:1], spec, None)
    change = with_streams("label", 7, lambda p: [set_all(p[0], 7), *[zeros(0)] * 6])
    reader = ShardReader(io.BytesIO(rewritten(change, buffer.getvalue())), spec, None)
    with pytest.raises(CorruptShardError, match="an entry that its row does not have"):
        reader.read_block(0)


def codebook_file(sizes, listed=(), ranks=()):
    parts = [encode_integers(np.array(values, np.int32), 128) for values in (listed, ranks)]
    return MAGIC + struct.pack("<4I", *sizes) + pack(parts[0] + parts[1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (codebook_file((0, 0, 1, 0)), "vocabulary 0"),
        (codebook_file((100, 101, 1, 0)), "101 listed ids"),
        (codebook_file((100, 0, 257, 1)), "257 heads"),
        (codebook_file((1 << 20, 0, 256, 1 << 15)), "outside the limits"),
        (codebook_file((100, 2, 1, 0), [3, 100]), "beyond its vocabulary of 100"),
        (codebook_file((100, 2, 1, 0), [3, 3]), "an id twice"),
        (codebook_file((100, 0, 1, 2), [], [3, 100]), "beyond its vocabulary of 100"),
        (codebook_file((100, 0, 1, 2), [], [3, 3]), "an id twice"),
    ],
)
def test_each_bad_codebook_file_has_its_message(data, message):
    with pytest.raises(CorruptShardError, match=message):
        CodebookSet.from_bytes(data)
