"""The sequences of a block, made of its columns.

Shape legend: T tokens and N label rows of all sequences of the block, K stored entries, M temperatures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from logitstore.records import LabeledSequence, LabelRows
from logitstore.shard.sequence_columns import PlainColumns, to_flags


def sequences_of(
    plain: PlainColumns,
    token_ids_T: np.ndarray,
    rows: LabelRows,
    mask_N: np.ndarray,
    prompts: Sequence[np.ndarray | None],
    segments: Sequence[np.ndarray | None],
) -> list[LabeledSequence]:
    """Views of the block's arrays; `prompts` and `segments` have one item of each sequence."""
    sequences: list[LabeledSequence] = []
    row = token = 0
    for (
        record_id,
        sample_index,
        tokens_here,
        prompt_length,
        label_start,
        rows_here,
        finish,
        flags,
        prompt,
        segments_T,
    ) in zip(
        *(values if isinstance(values, list) else values.tolist() for values in plain.in_order()),
        prompts,
        segments,
        strict=True,
    ):
        span = slice(row, row + rows_here)
        sequences.append(
            LabeledSequence(  # by position, in half the time: blocks have hundreds of sequences
                record_id,
                sample_index,
                token_ids_T[token : token + tokens_here],
                prompt_length,
                label_start,
                _slice_rows(rows, span),
                mask_N[span],
                finish,
                to_flags(flags),
                prompt,
                segments_T,
            )
        )
        row += rows_here
        token += tokens_here
    return sequences


def _slice_rows(rows: LabelRows, span: slice) -> LabelRows:
    return LabelRows(
        rows.logits_NK[span],
        rows.token_ids_NK[span],
        rows.count_N[span],
        rows.logsumexp_NM[span],
        rows.log_tail_mass_NM[span],
        rows.label_logprob_N[span],
        rows.label_rank_N[span],
    )
