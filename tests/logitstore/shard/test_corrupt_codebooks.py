"""Every way a codebook file can be bad ends in one of the format's errors."""

import contextlib
import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.codec.bytecodes import encode_integers
from logitstore.codec.codebooks import MAGIC, CodebookSet
from logitstore.codec.streams import pack
from logitstore.errors import CorruptShardError, InvalidLabelsError
from logitstore.shard.reader import ShardReader
from tests.logitstore.shard.damaged import (
    BOOKS,
    CODEBOOKS,
    REFUSED,
    SHARD,
    SPEC,
)


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
