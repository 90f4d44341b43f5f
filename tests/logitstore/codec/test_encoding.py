"""Round trips of made-up label rows: ragged K, vocabularies from 32 to 2^20, K up to V, both value kinds.

Shape legend: N label rows, K stored entries, M temperatures, V vocabulary.
"""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.codec.bytecodes import NUM_STREAMS, decode_integers, encode_integers
from logitstore.codec.codebook_training import train_codebooks
from logitstore.codec.codebooks import CodebookSet
from logitstore.codec.loops import wide_from
from logitstore.codec.streams import Unpacker, pack
from logitstore.errors import InvalidLabelsError
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence, LabelRows
from logitstore.shard.reader import ShardReader
from logitstore.shard.schema import packed_columns
from logitstore.shard.writer import write_shard
from tests.logitstore.capture import load_capture


def made_up(seed, num_rows, vocab_size, top_k, value_kind, temperatures=(1.0, 2.0)):
    """Rows of random counts, exact in fp16 for logit_f16, with ties, of a whole distribution."""
    generator = np.random.default_rng(seed)
    count_N = generator.integers(1, top_k + 1, num_rows).astype(np.int32)
    logits_NK = -np.sort(-generator.normal(0, 4, (num_rows, top_k)), axis=1).astype(np.float32)
    if value_kind == "logit_f16":
        logits_NK = (np.rint(logits_NK * 8) / 8).astype(np.float32)
    real_NK = np.arange(top_k) < count_N[:, None]
    ids_NK = np.stack([generator.choice(vocab_size, top_k, replace=False) for _ in range(num_rows)])
    tail_NM = np.log(generator.uniform(1e-6, 0.9, (num_rows, len(temperatures)))).astype(np.float32)
    tail_NM[count_N == vocab_size] = -np.inf
    head_NM = np.stack(
        [np.log(np.where(real_NK, np.exp(logits_NK / t), 0).sum(axis=1)) for t in temperatures], axis=1
    )
    rank_N = generator.integers(0, vocab_size + 1, num_rows).astype(np.int32)
    logprob_N = np.where(rank_N > 0, -generator.exponential(3, num_rows), np.nan).astype(np.float32)
    rows = LabelRows(
        np.where(real_NK, logits_NK, -np.inf).astype(np.float32),
        np.where(real_NK, ids_NK, 0).astype(np.int32),
        count_N,
        (head_NM - np.log1p(-np.exp(tail_NM))).astype(np.float32),
        tail_NM,
        logprob_N,
        rank_N,
    )
    spec = LabelSpec(vocab_size, top_k, temperatures, value_kind, "score", "all")
    tokens = generator.integers(0, vocab_size, num_rows + 3).astype(np.int32)
    return spec, LabeledSequence(
        f"記-{seed}", 0, tokens, 2, 4, rows, generator.random(num_rows) < 0.5, "scored"
    )


def check_round_trip(spec, sequence, books):
    buffer = io.BytesIO()
    write_shard(buffer, [sequence], spec, books)
    (after,) = ShardReader(buffer, spec, books).iter_sequences()
    before, rows = sequence.rows, after.rows
    np.testing.assert_array_equal(rows.count_N, before.count_N)
    np.testing.assert_array_equal(after.loss_mask_N, sequence.loss_mask_N)
    np.testing.assert_array_equal(rows.label_rank_N, before.label_rank_N)
    np.testing.assert_allclose(rows.label_logprob_N, before.label_logprob_N, atol=0.011)
    np.testing.assert_allclose(rows.log_tail_mass_NM, before.log_tail_mass_NM, atol=5e-4)
    np.testing.assert_allclose(rows.logsumexp_NM, before.logsumexp_NM, atol=3e-4)
    if spec.value_kind == "logit_f16":
        np.testing.assert_array_equal(rows.logits_NK, before.logits_NK)
        for found, given_ids, logits in zip(
            rows.token_ids_NK, before.token_ids_NK, before.logits_NK, strict=True
        ):
            np.testing.assert_array_equal(
                found[np.lexsort((found, -logits))], given_ids[np.lexsort((given_ids, -logits))]
            )
    else:
        np.testing.assert_array_equal(rows.token_ids_NK, before.token_ids_NK)
        np.testing.assert_allclose(rows.logits_NK, before.logits_NK, atol=0.0079)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_rows=st.integers(1, 20),
    vocab_size=st.sampled_from([32, 300, 5000, 65_537, 152_064, 1 << 20]),
    top_k=st.integers(1, 70),
    value_kind=st.sampled_from(["gap_f16", "logit_f16"]),
    has_codebooks=st.booleans(),
)
def test_made_up_rows_come_back(seed, num_rows, vocab_size, top_k, value_kind, has_codebooks):
    spec, sequence = made_up(seed, num_rows, vocab_size, min(top_k, vocab_size), value_kind)
    books = None
    if has_codebooks:
        books = train_codebooks([sequence.rows], spec, max_codebooks=4, expected_rows=10**6)
        assert CodebookSet.from_bytes(books.to_bytes()).hash == books.hash
    check_round_trip(spec, sequence, books)


@pytest.mark.parametrize("value_kind", ["gap_f16", "logit_f16"])
def test_rows_that_hold_the_whole_vocabulary_have_no_tail(value_kind):
    spec, sequence = made_up(1, 6, 500, 500, value_kind)
    rows = sequence.rows
    full = rows.count_N == rows.count_N.max()
    assert full.any()
    check_round_trip(spec, sequence, None)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 223), st.lists(st.integers(0, (1 << 20) + 70_000), max_size=60))
def test_integers_come_back_at_any_threshold(threshold, values):
    edges = [0, threshold - 1, threshold, wide_from(threshold) - 1, wide_from(threshold)]
    given_values = np.array([*edges, *values], np.int32)
    packed = pack(encode_integers(given_values, threshold))
    unpacker = Unpacker(memoryview(packed), NUM_STREAMS, "test", verify_checksum=True)
    np.testing.assert_array_equal(decode_integers(unpacker, len(given_values), "test"), given_values)


def test_the_same_sequences_give_the_same_bytes():
    spec, sequences = load_capture(16)
    first, second = io.BytesIO(), io.BytesIO()
    assert write_shard(first, sequences, spec, None) == write_shard(second, iter(sequences), spec, None)
    assert first.getvalue() == second.getvalue()


def test_an_empty_shard_is_a_shard():
    spec, _ = load_capture(16)
    buffer = io.BytesIO()
    stats = write_shard(buffer, [], spec, None)
    reader = ShardReader(buffer, spec, None)
    assert (stats.num_rows, reader.num_blocks, reader.num_sequences, reader.block_starts) == (0, 0, 0, [])


def test_shards_written_before_the_set_existed_are_read_with_it():
    spec, sequences = load_capture(16)
    books = train_codebooks((sequence.rows for sequence in sequences), spec, max_codebooks=4)
    for written_with in (None, books):
        buffer = io.BytesIO()
        write_shard(buffer, sequences, spec, written_with)
        (first, *_) = ShardReader(buffer, spec, books).iter_sequences()
        np.testing.assert_array_equal(first.rows.token_ids_NK, sequences[0].rows.token_ids_NK)


class CountingFile(io.BytesIO):
    """Counts what is read."""

    num_bytes = 0

    def read(self, size=-1, /):
        data = super().read(size)
        self.num_bytes += len(data)
        return data


def test_a_prefix_read_touches_less_than_a_quarter_of_the_bytes():
    spec, sequences = load_capture(128)
    buffer = io.BytesIO()
    write_shard(buffer, sequences, spec, None)
    counting = CountingFile(buffer.getvalue())
    list(ShardReader(counting, spec, None).iter_sequences(top_k=16))
    assert counting.num_bytes < 0.25 * len(buffer.getvalue())


def test_column_sizes_add_up_to_the_file():
    spec, sequences = load_capture(64)
    buffer = io.BytesIO()
    stats = write_shard(buffer, sequences, spec, None)
    sizes = ShardReader(buffer, spec, None).column_bytes()
    assert sum(sizes.values()) == stats.num_bytes
    assert set(packed_columns(spec, False)) - {"tails", "normalizers"} < set(sizes)


def broken(field, change):
    def apply(rows):
        value = getattr(rows, field).copy()
        change(value)
        return replace(rows, **{field: value})

    return apply


def put(index, value):
    def change(array):
        array[index] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken("logits_NK", put((3, 2), np.nan)), "infinite or NaN"),
        (broken("logits_NK", put((3, 2), 99)), "rise"),
        (broken("token_ids_NK", put((3, 2), 49_152)), "ids 0..49152|ids"),
        (broken("token_ids_NK", put((3, slice(0, 2)), 7)), "twice in row 3"),
        (broken("log_tail_mass_NM", put((3, 0), 0.5)), "log tail mass"),
        (broken("log_tail_mass_NM", put((3, 0), np.nan)), "NaN log tail"),
        (broken("logsumexp_NM", put((3, 1), 1.0)), "temperature 2.0"),
        (broken("count_N", put(3, 0)), "entry counts 0"),
        (broken("label_rank_N", put(3, -1)), "label ranks -1"),
    ],
)
def test_invalid_rows_are_refused_by_the_writer(change, message):
    spec, sequences = load_capture(16)
    bad = replace(sequences[0], rows=change(sequences[0].rows), record_id="bad")
    for together in ([bad], [*sequences[1:3], bad, sequences[3]]):  # its own row, wherever it lies in a block
        with pytest.raises(InvalidLabelsError, match=f"record 'bad': .*({message})"):
            write_shard(io.BytesIO(), together, spec, None)


def test_a_row_of_more_entries_than_its_sequence_has_is_refused_beside_wider_ones():
    spec, sequences = load_capture(16)
    rows = sequences[1].rows
    narrow = replace(rows, logits_NK=rows.logits_NK[:, :8], token_ids_NK=rows.token_ids_NK[:, :8])
    with pytest.raises(InvalidLabelsError, match="entry counts 16"):
        write_shard(io.BytesIO(), [sequences[0], replace(sequences[1], rows=narrow)], spec, None)


@pytest.mark.parametrize("change", [{"flags": ("cut", None)}, {"finish_reason": 5}, {"flags": ("\ud800",)}])
def test_what_is_no_text_is_refused_by_the_writer(change):
    spec, sequences = load_capture(16)
    with pytest.raises(InvalidLabelsError, match=r"the format wants (Unicode )?text"):
        write_shard(io.BytesIO(), [replace(sequences[0], **change)], spec, None)


def of_type(field, dtype, more=None):
    def apply(rows):
        value = getattr(rows, field).astype(dtype)
        return replace(rows, **{field: value if more is None else value + more})

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_type("token_ids_NK", np.float64, 0.5), "token_ids_NK of float64"),
        (of_type("token_ids_NK", np.int64, 1 << 32), "ids of 32 bits"),
        (of_type("token_ids_NK", object), "token_ids_NK of object"),
        (of_type("count_N", np.float32, -0.5), "count_N of float32"),
        (of_type("label_rank_N", np.float32, 0.5), "label_rank_N of float32"),
        (of_type("logits_NK", str), "logits_NK of <U"),
    ],
)
def test_rows_of_another_type_are_refused_and_not_cut(change, message):
    spec, sequences = load_capture(16)
    with pytest.raises(InvalidLabelsError, match=message):
        write_shard(io.BytesIO(), [replace(sequences[0], rows=change(sequences[0].rows))], spec, None)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("token_ids_T", lambda ids_T: ids_T + 0.5),
        ("token_ids_T", np.ndarray.tolist),
        ("token_ids_T", lambda _: None),
        ("token_ids_T", lambda ids_T: ids_T[None]),
        ("loss_mask_N", lambda mask_N: mask_N * 0.5),
        ("prompt_length", float),
        ("label_start", lambda start: start + 0.5),
        ("sample_index", str),
    ],
)
def test_a_sequence_of_other_types_is_refused_and_not_cut(field, change):
    spec, sequences = load_capture(16)
    other = replace(sequences[0], **{field: change(getattr(sequences[0], field))})
    with pytest.raises(InvalidLabelsError, match=f"{field} .*the format wants"):
        write_shard(io.BytesIO(), [other], spec, None)


def test_integers_of_other_widths_are_written_as_they_are():
    spec, sequences = load_capture(16)
    rows = of_type("token_ids_NK", np.uint64)(of_type("label_rank_N", ">i8")(sequences[0].rows))
    other = replace(sequences[0], token_ids_T=sequences[0].token_ids_T.astype(">i8"), rows=rows)
    buffers = io.BytesIO(), io.BytesIO()
    for buffer, sequence in zip(buffers, (sequences[0], other), strict=True):
        write_shard(buffer, [sequence], spec, None)
    assert buffers[0].getvalue() == buffers[1].getvalue()


def test_logits_that_fp16_cannot_hold_are_refused_with_the_remedy():
    spec, sequences = load_capture(16, "gap_f16")
    with pytest.raises(InvalidLabelsError, match='use "gap_f16"'):
        write_shard(io.BytesIO(), sequences, replace(spec, value_kind="logit_f16"), None)
