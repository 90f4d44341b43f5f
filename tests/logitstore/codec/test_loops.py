"""The compiled loops give the same bits as numpy's, entry by entry and shard by shard."""

from __future__ import annotations

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
from logitstore.codec.bytecodes import NUM_STREAMS, IntegerReader, encode_integers, streams_of
from logitstore.codec.codebooks import CodebookSet, position_bits
from logitstore.codec.loops import NUMPY_LOOPS, Loops, use_compiled_loops
from logitstore.codec.streams import Unpacker, pack
from logitstore.shard.reader import ShardReader
from logitstore.shard.writer import write_shard
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


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(0, 9),
    width=st.integers(1, 12),
    threshold=st.integers(1, 223),
    start=st.integers(0, 12),
    is_full=st.booleans(),
)
def test_integers_split_alike_rank_after_rank(
    seed: int, num_rows: int, width: int, threshold: int, start: int, is_full: bool
) -> None:
    """Beyond its count a row holds anything, also what is negative."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 21, (num_rows, width))
    values_NK = (rng.integers(0, 1 << 20, (num_rows, width)) >> bits).astype(np.int32)
    count_N = np.full(num_rows, width) if is_full else rng.integers(1, width + 1, num_rows)
    values_NK[np.arange(width) >= count_N[:, None]] = rng.integers(-(1 << 31), 1 << 31)
    end = max(start, width)
    expected = [
        values_NK[row, rank] for rank in range(start, end) for row in range(num_rows) if rank < count_N[row]
    ]
    for form in (NUMPY_LOOPS, compiled()):
        parts = form.split(values_NK, count_N.astype(np.int32), start, end, threshold)
        assert [part.dtype for part in parts] == [np.uint8, np.uint8, np.uint16]
        packed = pack(streams_of(parts, threshold))
        unpacker = Unpacker(memoryview(packed), NUM_STREAMS, "test", verify_checksum=True)
        found = IntegerReader(unpacker, len(expected), "test", NUMPY_LOOPS).take(len(expected))
        np.testing.assert_array_equal(found, np.array(expected, np.int32))


@pytest.mark.parametrize("num_codebooks", [2, 5, 16])
def test_codebooks_are_chosen_and_ids_placed_alike(num_codebooks: int) -> None:
    """Bit for bit: of rows whose sums are nearly equal, too, and with ids that mean nothing past the count."""
    rng = np.random.default_rng(num_codebooks)
    num_rows, width, vocab_size, num_slots = 700, 40, 500, 120
    slot_V = np.where(rng.random(vocab_size) < 0.7, rng.integers(0, num_slots, vocab_size), 0).astype(
        np.int32
    )
    bits_SC = position_bits(rng.integers(0, 9, (num_slots, num_codebooks)))
    bits_SC[0] = 0
    positions_SC = rng.integers(0, 400, bits_SC.shape).astype(np.int32)
    global_V = rng.permutation(vocab_size).astype(np.int32)
    ids_NK = rng.integers(0, vocab_size, (num_rows, width)).astype(np.int32)
    for count_N in (np.full(num_rows, width), rng.integers(1, width + 1, num_rows)):
        count_N = count_N.astype(np.int32)  # noqa: PLW2901
        real_NK = np.arange(width) < count_N[:, None]
        ids_NK[~real_NK] = -(1 << 30)
        choices, places = [], []
        for form in (NUMPY_LOOPS, compiled()):
            choices.append(form.choose(ids_NK, count_N, slot_V, bits_SC))
            places_NK = form.place(ids_NK, count_N, choices[-1], slot_V, positions_SC, global_V)
            places.append(places_NK[real_NK])
        np.testing.assert_array_equal(*choices)
        np.testing.assert_array_equal(*places)
        assert len(np.unique(choices[0])) == num_codebooks
    row, rank = 3, 0
    slot = slot_V[ids_NK[row, rank]]
    expected = positions_SC[slot, choices[0][row]] if slot else global_V[ids_NK[row, rank]]
    assert places_NK[row, rank] == expected


@pytest.mark.parametrize("value_kind", ["gap_f16", "logit_f16"])
def test_shards_are_written_alike(value_kind: str) -> None:
    spec, sequences = golden_sequences(value_kind)
    books = CodebookSet.from_bytes((FOLDER / "codebooks.bin").read_bytes())
    written = []
    for load in (lambda: None, use_compiled_loops):
        load()
        file = io.BytesIO()
        write_shard(file, sequences, spec, books)
        written.append(file.getvalue())
    assert written[0] == written[1]


def test_a_process_that_writes_much_loads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, sequences = golden_sequences("gap_f16")
    monkeypatch.setattr(loops, "LOAD_AFTER_ENTRIES", 1)
    used = []
    monkeypatch.setattr(loops, "compiled_loops", lambda: used.append(1))
    for _ in range(2):
        write_shard(io.BytesIO(), sequences, spec, None)
    assert used


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
