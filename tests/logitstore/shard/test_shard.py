"""A shard gives back what was written, whole or as a prefix of ranks."""

import io

import numpy as np
import pytest

from logitstore.shard.reader import ShardReader
from logitstore.shard.writer import write_shard
from tests.logitstore.capture import load_capture


def written(sequences, spec, codebooks=None):
    buffer = io.BytesIO()
    stats = write_shard(buffer, sequences, spec, codebooks)
    return buffer.getvalue(), stats


def read(data, spec, codebooks=None, top_k=None):
    with ShardReader(io.BytesIO(data), spec, codebooks) as reader:
        return list(reader.iter_sequences(top_k=top_k))


def test_gap_round_trip_keeps_ids_and_fp16_gaps():
    spec, sequences = load_capture(128, "gap_f16")
    data, stats = written(sequences, spec)
    assert stats.num_rows == sum(sequence.rows.num_rows for sequence in sequences)
    assert stats.num_bytes == len(data)
    for before, after in zip(sequences, read(data, spec), strict=True):
        top = before.rows.logits_NK[:, :1]
        gaps = (top - before.rows.logits_NK).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(after.rows.logits_NK, top - gaps)
        np.testing.assert_array_equal(after.rows.token_ids_NK, before.rows.token_ids_NK)
        np.testing.assert_array_equal(after.token_ids_T, before.token_ids_T)
        np.testing.assert_array_equal(after.rows.label_rank_N, before.rows.label_rank_N)
        np.testing.assert_allclose(after.rows.logsumexp_NM, before.rows.logsumexp_NM, atol=6e-5)
        np.testing.assert_allclose(after.rows.log_tail_mass_NM, before.rows.log_tail_mass_NM, atol=4.9e-4)
        np.testing.assert_allclose(after.rows.label_logprob_N, before.rows.label_logprob_N, atol=0.01)


def test_logit_round_trip_is_exact_and_only_orders_ties_anew():
    spec, sequences = load_capture(128, "logit_f16")
    data, _ = written(sequences, spec)
    for before, after in zip(sequences, read(data, spec), strict=True):
        np.testing.assert_array_equal(after.rows.logits_NK, before.rows.logits_NK)
        given_ids, found_ids = (
            np.take_along_axis(rows.token_ids_NK, np.lexsort((rows.token_ids_NK, -rows.logits_NK)), axis=1)
            for rows in (before.rows, after.rows)
        )
        np.testing.assert_array_equal(found_ids, given_ids)


@pytest.mark.parametrize("top_k", [1, 5, 16, 100])
def test_a_prefix_read_is_the_head_of_a_whole_read(top_k):
    spec, sequences = load_capture(128, "gap_f16")
    data, _ = written(sequences, spec)
    for whole, prefix in zip(read(data, spec), read(data, spec, top_k=top_k), strict=True):
        np.testing.assert_array_equal(prefix.rows.logits_NK, whole.rows.logits_NK[:, :top_k])
        np.testing.assert_array_equal(prefix.rows.token_ids_NK, whole.rows.token_ids_NK[:, :top_k])
        np.testing.assert_array_equal(prefix.rows.label_logprob_N, whole.rows.label_logprob_N)
        np.testing.assert_array_equal(prefix.rows.logsumexp_NM, whole.rows.logsumexp_NM)
