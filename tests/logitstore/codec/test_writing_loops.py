"""The compiled loops of writing give the same bits as numpy's, entry by entry and shard by shard."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.codec import loops
from logitstore.codec.bytecodes import NUM_STREAMS, IntegerReader, streams_of
from logitstore.codec.codebooks import CodebookSet, position_bits
from logitstore.codec.loops import NUMPY_LOOPS, use_compiled_loops
from logitstore.codec.streams import Unpacker, pack
from logitstore.codec.writing_loops import NUMPY_WRITING, WritingLoops, compiled_writing, excess_of
from logitstore.errors import InvalidLabelsError
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabelRows
from logitstore.rows.temperature import truncate
from logitstore.shard.validation import NORMALIZATION_TOLERANCE, check_sequence
from logitstore.shard.writer import write_shard
from tests.golden.v1.make_golden import FOLDER, golden_sequences
from tests.logitstore.capture import load_capture


@pytest.fixture(autouse=True)
def fresh_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_entries_read", 0)


def compiled() -> WritingLoops:
    assert loops.compiled_loops() is not None, "the extra `dev` brings numba"
    return compiled_writing()


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
    for form in (NUMPY_WRITING, compiled()):
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
        for form in (NUMPY_WRITING, compiled()):
            choices.append(form.choose(ids_NK, count_N, slot_V, bits_SC, excess_of(bits_SC)))
            places_NK = form.place(ids_NK, count_N, choices[-1], slot_V, positions_SC, global_V)
            places.append(places_NK[real_NK])
        np.testing.assert_array_equal(*choices)
        np.testing.assert_array_equal(*places)
        assert len(np.unique(choices[0])) == num_codebooks
    row, rank = 3, 0
    slot = slot_V[ids_NK[row, rank]]
    expected = positions_SC[slot, choices[0][row]] if slot else global_V[ids_NK[row, rank]]
    assert places_NK[row, rank] == expected


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), num_books=st.integers(1, 70), scale=st.sampled_from([1e-3, 0.05, 1, 16])
)
def test_the_cheapest_codebook_is_found_among_nearly_equal_ones(
    seed: int, num_books: int, scale: float
) -> None:
    """What a byte says of an id is rounded, and the sums of float32 decide all the same."""
    rng = np.random.default_rng(seed)
    vocab_size, width = 90, 64
    slot_V = rng.integers(0, 40, vocab_size).astype(np.int32)
    bits_SC = (3.6 + rng.random((40, num_books)) * scale).astype(np.float32)
    bits_SC[0] = 0
    ids_NK = rng.integers(0, vocab_size, (9, width)).astype(np.int32)
    count_N = rng.integers(1, width + 1, 9).astype(np.int32)
    arguments = (ids_NK, count_N, slot_V, bits_SC, excess_of(bits_SC))
    np.testing.assert_array_equal(NUMPY_WRITING.choose(*arguments), compiled().choose(*arguments))


def test_the_most_that_codebooks_can_differ_by_fits_a_byte() -> None:
    bits_SC = position_bits(
        np.array([[0, 1 << 21]])  # the last id beyond a head as long as the vocabulary
    )
    assert 240 < int(excess_of(bits_SC).max()) <= 255


def logits_of(kind: str, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Falling logits: of any size, with ties, zeros of both signs and the smallest numbers of fp16."""
    logits_NK = rng.normal(0, 10.0 ** rng.integers(-8, 4), shape).astype(np.float32)
    logits_NK[rng.random(shape) < 0.2] = rng.choice(
        np.array([0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 1.5], np.float32)
    )
    if kind == "logit_f16":
        logits_NK = logits_NK.astype(np.float16).astype(np.float32)
    return -np.sort(-logits_NK, axis=1)


@pytest.mark.parametrize("kind", ["gap_f16", "logit_f16"])
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_rows=st.integers(1, 40), width=st.integers(1, 70))
def test_values_and_ties_are_coded_alike(kind: str, seed: int, num_rows: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    logits_NK = logits_of(kind, rng, (num_rows, width))
    count_N = rng.integers(1, width + 1, num_rows).astype(np.int32)
    real_NK = np.arange(width) < count_N[:, None]
    logits_NK[~real_NK] = -np.inf
    steps, codes = [], []
    positions_NK = np.stack([rng.permutation(1 << 12)[:width] for _ in range(num_rows)]).astype(np.int32)
    with np.errstate(invalid="ignore"):
        for form in (NUMPY_WRITING, compiled()):
            steps.append(form.steps(logits_NK, count_N, kind))
            codes.append(positions_NK.copy())
            form.code_ties(codes[-1], np.where(real_NK, steps[0], -1), count_N)
    np.testing.assert_array_equal(*(found[real_NK] for found in steps))
    np.testing.assert_array_equal(*(found[real_NK] for found in codes))
    assert (steps[0][:, 1:][real_NK[:, 1:]] >= 0).all()


@pytest.mark.parametrize(
    ("kind", "logits", "message"),
    [
        ("gap_f16", [70_000, 1, 0], "more than 65,504 below"),
        ("gap_f16", [65_520, 0, 0], "more than 65,504 below"),
        ("logit_f16", [1, 0.1, 0], "rank 1"),
        ("logit_f16", [70_000, 1, 0], "rank 0"),
        ("logit_f16", [1, 0, -1e-9], "rank 2"),
    ],
)
def test_what_fp16_cannot_hold_is_refused_alike(kind: str, logits: list[float], message: str) -> None:
    logits_NK, count_N = np.array([[3, 2, 1], logits], np.float32), np.array([3, 3], np.int32)
    for form in (NUMPY_WRITING, compiled()):
        with pytest.raises(InvalidLabelsError, match=message):
            form.steps(logits_NK, count_N, kind)


def is_sound(rows: LabelRows, spec: LabelSpec, form: WritingLoops) -> bool:
    return form.is_sound(
        np.ascontiguousarray(rows.token_ids_NK),
        np.ascontiguousarray(rows.logits_NK),
        rows.count_N,
        rows.logsumexp_NM,
        rows.log_tail_mass_NM,
        np.asarray(spec.temperatures, np.float32),
        spec.vocab_size,
        NORMALIZATION_TOLERANCE / 2,
    )


def put(field: str, index: tuple[int, int], value: float) -> Callable[[LabelRows], LabelRows]:
    def change(rows: LabelRows) -> LabelRows:
        array = getattr(rows, field).copy()
        array[index] = value
        return replace(rows, **{field: array})

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("token_ids_NK", (5, 3), -1),
        put("token_ids_NK", (5, 3), 1 << 20),
        lambda rows: put("token_ids_NK", (5, 3), rows.token_ids_NK[5, 15])(rows),
        put("logits_NK", (5, 3), np.nan),
        put("logits_NK", (5, 0), np.inf),
        put("logits_NK", (5, 0), np.nan),
        put("logits_NK", (5, 15), -np.inf),
        put("logits_NK", (5, 7), 1e9),
        put("logsumexp_NM", (5, 2), np.nan),
        put("logsumexp_NM", (5, 1), np.inf),
        put("log_tail_mass_NM", (5, 2), np.nan),
        put("log_tail_mass_NM", (5, 2), 0.1),
        lambda rows: put("logsumexp_NM", (5, 0), rows.logsumexp_NM[5, 0] + 0.3)(rows),
        lambda rows: put("logsumexp_NM", (5, 1), rows.logsumexp_NM[5, 1] - 3)(rows),
        put("logsumexp_NM", (5, 2), -1e30),
    ],
)
def test_rows_that_break_a_rule_are_never_sound(change: Callable[[LabelRows], LabelRows]) -> None:
    spec, sequences = load_capture(16)
    for rows in (sequences[0].rows, truncate(sequences[0].rows, spec, 16)):
        assert is_sound(rows, spec, compiled())
        assert not is_sound(rows, spec, NUMPY_WRITING)  # it leaves the answer to validation.py
        wrong = change(rows)
        assert not is_sound(wrong, spec, compiled())
        sequence = replace(sequences[0], rows=wrong)
        with pytest.raises(InvalidLabelsError):
            check_sequence(sequence, spec)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["gap_f16", "logit_f16"]),
    top_k=st.sampled_from([1, 7, 20, 64, 128]),
    has_books=st.booleans(),
)
def test_shards_of_any_cut_are_written_alike(seed: int, kind: str, top_k: int, has_books: bool) -> None:
    """Real rows, cut to any number of entries row by row, in sequences of any length."""
    rng = np.random.default_rng(seed)
    spec, sequences = load_capture(top_k, kind)
    books = CodebookSet.from_bytes((FOLDER / "codebooks.bin").read_bytes()) if has_books else None
    cut = []
    for sequence in sequences[: rng.integers(1, 4)]:
        end = int(rng.integers(0, sequence.rows.num_rows))
        rows = sequence.rows.slice(0, end)
        if rng.random() < 0.7 and end:
            rows = truncate(rows, spec, int(rng.integers(1, top_k + 1)))
        kept = {
            "rows": rows,
            "token_ids_T": sequence.token_ids_T[:end],
            "loss_mask_N": sequence.loss_mask_N[:end],
        }
        cut.append(replace(sequence, **kept))
    written = []
    for load_after in (1 << 62, 0):
        loops._entries_read = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loops, "LOAD_AFTER_ENTRIES", load_after)
            file = io.BytesIO()
            write_shard(file, cut, spec, books)
            written.append(file.getvalue())
    assert written[0] == written[1]


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
