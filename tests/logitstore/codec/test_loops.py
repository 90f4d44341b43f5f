"""The compiled loops of reading give the same bits as numpy's, entry by entry and shard by shard."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.codec import loops
from logitstore.codec.bytecodes import NUM_STREAMS, IntegerReader, encode_integers
from logitstore.codec.codebooks import CodebookSet
from logitstore.codec.loops import NUMPY_LOOPS, Loops, use_compiled_loops
from logitstore.codec.streams import Unpacker, pack
from logitstore.codec.writing_loops import NUMPY_WRITING, compiled_writing
from logitstore.shard.reader import ShardReader
from tests.golden.v1.make_golden import FOLDER, golden_sequences


@pytest.fixture(autouse=True)
def fresh_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_entries_read", 0)


def compiled() -> Loops:
    found = loops.compiled_loops()
    assert found is not None, "the extra `dev` brings numba"
    return found


def take_in_parts(values: np.ndarray, threshold: int, form: Loops, sizes: list[int]) -> np.ndarray:
    packed = pack(encode_integers(values, threshold))
    unpacker = Unpacker(memoryview(packed), NUM_STREAMS, "test", verify_checksum=True)
    reader = IntegerReader(unpacker, len(values), "test", form)
    return np.concatenate([reader.take(size) for size in sizes])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    threshold=st.integers(1, 223),
    values=st.lists(st.integers(0, (1 << 20) + 70_000) | st.integers(0, 300), max_size=80),
    cut=st.integers(0, 80),
)
def test_integers_expand_alike_in_any_parts(threshold: int, values: list[int], cut: int) -> None:
    given_values = np.array(values, np.int32)
    first = min(cut, len(values))
    for form in (NUMPY_LOOPS, compiled()):
        found = take_in_parts(given_values, threshold, form, [first, len(values) - first])
        np.testing.assert_array_equal(found, given_values)
        assert found.dtype == np.int32


def test_positions_are_looked_up_alike() -> None:
    rng = np.random.default_rng(0)
    head_length, num_codebooks, vocab_size = 300, 5, 2000
    table = rng.integers(0, vocab_size, num_codebooks * head_length + vocab_size).astype(np.int32)
    positions_GN = rng.integers(0, head_length + vocab_size, (7, 33)).astype(np.int32)
    offset_N = (rng.integers(0, num_codebooks, 33) * head_length).astype(np.int32)
    found = []
    for form in (NUMPY_LOOPS, compiled()):
        out_NK = np.full((33, 10), -1, np.int32)
        form.look_up(positions_GN, offset_N, table, head_length, (num_codebooks - 1) * head_length, out_NK, 2)
        found.append(out_NK)
    np.testing.assert_array_equal(*found)
    assert (found[0][:, [0, 1, 9]] == -1).all()
    in_head = positions_GN[0, 0] < head_length
    expected = positions_GN[0, 0] + (offset_N[0] if in_head else (num_codebooks - 1) * head_length)
    assert found[0][0, 2] == table[expected]


def test_every_finite_gap_is_subtracted_alike() -> None:
    patterns_GN = np.arange(0x7C00, dtype=np.int32).reshape(16, -1)
    top_N = np.random.default_rng(0).normal(0, 30, patterns_GN.shape[1]).astype(np.float32)
    expected = top_N - patterns_GN.astype(np.uint16).view(np.float16).astype(np.float32)
    for form in (NUMPY_LOOPS, compiled()):
        out_NK = np.zeros((patterns_GN.shape[1], 16), np.float32)
        form.subtract_gaps(patterns_GN, top_N, out_NK, 0)
        np.testing.assert_array_equal(out_NK, expected.T)


def test_planes_are_joined_alike() -> None:
    expected = np.array([0, 1, 255, 256, 65_535, 65_536, 0xFFFFFF, 0x123456], np.uint32)
    low, middle, high = ((expected >> shift).astype(np.uint8) for shift in (0, 8, 16))
    for form in (NUMPY_LOOPS, compiled()):
        found = np.full(len(expected), 0xDEADBEEF, np.uint32)
        form.join(low, middle, high, found)
        np.testing.assert_array_equal(found, expected)


def test_labels_are_read_off_the_entries_alike() -> None:
    """Of the rows asked for, at their rank, never above 0; the others stay as they are."""
    logits_NK = np.array([[3, 2, 1], [5, 4, 0], [7, 6, 5]], np.float32)
    logsumexp_N = np.array([4, 4.5, 8], np.float32)
    for form in (NUMPY_LOOPS, compiled()):
        out_N = np.full(3, np.nan, np.float32)
        which_N, rank_N = np.array([True, True, False]), np.array([3, 1, 99], np.int32)
        form.read_label(which_N, rank_N, logits_NK, logsumexp_N, out_N)
        np.testing.assert_array_equal(out_N, np.array([-3, 0, np.nan], np.float32))


@pytest.mark.parametrize("value_kind", ["gap_f16", "logit_f16"])
@pytest.mark.parametrize("top_k", [5, None])
def test_shards_are_read_alike(value_kind: str, top_k: int | None) -> None:
    spec, _ = golden_sequences(value_kind)
    data = (FOLDER / f"{value_kind}.arrow").read_bytes()
    books = CodebookSet.from_bytes((FOLDER / "codebooks.bin").read_bytes())
    read = [list(ShardReader(io.BytesIO(data), spec, books).iter_sequences(top_k=top_k))]
    assert use_compiled_loops()
    read.append(list(ShardReader(io.BytesIO(data), spec, books).iter_sequences(top_k=top_k)))
    for plain, fast in zip(*read, strict=True):
        for field in fields(plain.rows):
            np.testing.assert_array_equal(
                getattr(plain.rows, field.name), getattr(fast.rows, field.name), err_msg=field.name
            )


def test_a_process_loads_them_when_it_reads_much(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loops.loops_for(loops.LOAD_AFTER_ENTRIES - 1) is NUMPY_LOOPS
    assert loops.loops_for(1) is NUMPY_LOOPS
    assert loops.loops_for(1) is compiled()
    monkeypatch.setattr(loops, "compiled_loops", lambda: None)
    assert loops.loops_for(1) is NUMPY_LOOPS
    assert not use_compiled_loops()


def test_without_numba_reading_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "logitstore.codec.compiled_loops", None)
    monkeypatch.delattr("logitstore.codec.compiled_loops", raising=False)
    assert loops.compiled_loops.__wrapped__() is None


def test_a_full_disk_of_machine_code_stops_neither_reading_nor_writing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where numba keeps what it compiled is another disk than the store's, such as a home with a quota."""

    def no_room(name: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loops.importlib, "import_module", no_room)
    for form, plain in ((loops.compiled_loops, None), (compiled_writing, NUMPY_WRITING)):
        with pytest.warns(UserWarning, match=r"No space left .*set NUMBA_CACHE_DIR"):
            assert form.__wrapped__() is plain


@pytest.mark.slow
def test_where_nothing_can_be_compiled_a_warning_says_what_to_do() -> None:
    """As in a package that cannot be written, without a home: numba has nowhere to keep machine code."""
    script = "from logitstore.codec.loops import use_compiled_loops; print(use_compiled_loops())"
    environment = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "IPythonCacheLocator"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout == "False\n", done.stderr
    assert "set NUMBA_CACHE_DIR" in done.stderr
