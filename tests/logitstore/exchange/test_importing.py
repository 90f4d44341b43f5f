"""What an import says of the actual tokens, and when it goes on with what an earlier one began."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from logitstore.errors import InvalidLabelsError, StoreChangedError
from logitstore.exchange.importing import Origin, Source, import_source, label_statistics
from logitstore.exchange.rows import rows_from_logprobs
from logitstore.records import LabeledSequence, Segment
from tests.trainer.stores import label_spec, labeled_sequence

SPEC = label_spec()


def test_padding_is_no_entry_of_the_first_token() -> None:
    logits_NK = np.array([[3.0, 1.0, -np.inf], [3.0, 1.0, 0.5]], np.float32)
    ids_NK = np.array([[5, 7, 0], [5, 7, 0]], np.int32)
    logprob_N, rank_N = label_statistics(logits_NK, ids_NK, np.full(2, 4, np.float32), np.zeros(2, np.int32))
    np.testing.assert_array_equal(logprob_N, np.array([np.nan, -3.5], np.float32))
    np.testing.assert_array_equal(rank_N, [0, 3])


def test_a_row_of_few_entries_does_not_know_the_first_token() -> None:
    logprobs_NK = np.array([[-0.1, -3.0, -1000.0]], np.float32)  # one place is empty, as captures write it
    ids_NK = np.array([[5, 7, 0]], np.int32)
    rows = rows_from_logprobs(logprobs_NK, ids_NK, np.zeros(1, np.int32), vocab_size=16)
    assert np.isnan(rows.label_logprob_N[0])
    assert rows.label_rank_N[0] == 0


def _other_mask(one: LabeledSequence) -> LabeledSequence:
    return dataclasses.replace(one, loss_mask_N=~one.loss_mask_N)


def _other_tail(one: LabeledSequence) -> LabeledSequence:
    tail_NM = one.rows.log_tail_mass_NM - np.float32(0.003)
    return dataclasses.replace(one, rows=dataclasses.replace(one.rows, log_tail_mass_NM=tail_NM))


def _other_label(one: LabeledSequence) -> LabeledSequence:
    unknown = np.full_like(one.rows.label_logprob_N, np.nan), np.zeros_like(one.rows.label_rank_N)
    rows = dataclasses.replace(one.rows, label_logprob_N=unknown[0], label_rank_N=unknown[1])
    return dataclasses.replace(one, rows=rows)


def _segments(one: LabeledSequence) -> LabeledSequence:
    segments_T = np.full(len(one.token_ids_T), Segment.ANSWER, np.uint8)
    segments_T[: one.prompt_length] = Segment.CONTEXT
    return dataclasses.replace(one, segments_T=segments_T)


@pytest.mark.parametrize(
    "change",
    [
        _other_mask,
        _other_tail,
        _other_label,
        _segments,
        lambda one: dataclasses.replace(one, flags=("truncated",)),
        lambda one: dataclasses.replace(one, finish_reason="length"),
    ],
    ids=["mask", "tail", "label", "segments", "flags", "finish"],
)
def test_a_source_that_was_corrected_is_not_taken_for_the_old_one(
    tmp_path: Path, change: Callable[[LabeledSequence], LabeledSequence]
) -> None:
    rng = np.random.default_rng(0)
    before = [labeled_sequence(rng, f"r{index}", SPEC, 20, 3) for index in range(3)]

    def imported(sequences: list[LabeledSequence]) -> str:
        source = Source("npz", "capture", SPEC, iter(sequences), None)
        return import_source(source, str(tmp_path / "store"), origin=Origin()).digest

    digest = imported(before)
    assert imported(before) == digest
    with pytest.raises(StoreChangedError, match=r"begun with another input, .* or by an earlier version"):
        imported([change(one) for one in before])


def test_tokens_of_another_tokenizer_are_refused_before_a_store_is_made(tmp_path: Path) -> None:
    """`verify` called such a store damaged."""
    one = labeled_sequence(np.random.default_rng(0), "r0", SPEC, 20, 3)
    other = dataclasses.replace(one, token_ids_T=one.token_ids_T + SPEC.vocab_size)
    source = Source("megatron", "logits", SPEC, iter([other]), None)
    with pytest.raises(InvalidLabelsError, match=rf"the vocabulary ends at {SPEC.vocab_size - 1}"):
        import_source(source, str(tmp_path / "store"), origin=Origin())
    assert not (tmp_path / "store").exists()
