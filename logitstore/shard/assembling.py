"""The sequences of a block, made of its columns.

Shape legend: T tokens and N label rows of all sequences of the block, K stored entries, M temperatures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import compress

import numpy as np

from logitstore.records import LabeledSequence, LabelRows
from logitstore.shard.sequence_columns import PlainColumns, to_flags


@dataclass(frozen=True, slots=True)
class BlockSequences:
    """The sequences of a block, as whole columns of it."""

    plain: PlainColumns
    token_ids_T: np.ndarray
    """int32, of all sequences, one after the other."""
    rows: LabelRows
    """Likewise."""
    mask_N: np.ndarray
    """bool."""
    prompts: Sequence[np.ndarray | None]
    """`student_prompt_ids` of each sequence."""
    segments: Sequence[np.ndarray | None]
    """`segments_T` of each sequence."""

    def __len__(self) -> int:
        return len(self.plain.record_id)

    @classmethod
    def of(cls, sequences: Sequence[LabeledSequence]) -> BlockSequences:
        """At least one sequence, of rows that are all of the same width."""
        return cls(
            PlainColumns.of(sequences),
            np.concatenate([one.token_ids_T for one in sequences]),
            LabelRows(
                *(
                    np.concatenate([getattr(one.rows, field.name) for one in sequences])
                    for field in fields(LabelRows)
                )
            ),
            np.concatenate([one.loss_mask_N for one in sequences]),
            [one.student_prompt_ids for one in sequences],
            [one.segments_T for one in sequences],
        )

    def filter(self, kept_S: np.ndarray) -> BlockSequences:
        """The sequences that `kept_S`, bool, tells to keep."""
        kept_N = np.repeat(kept_S, self.plain.num_rows)
        return BlockSequences(
            self.plain.filter(kept_S),
            self.token_ids_T[np.repeat(kept_S, self.plain.num_tokens)],
            LabelRows(*(getattr(self.rows, field.name)[kept_N] for field in fields(LabelRows))),
            self.mask_N[kept_N],
            list(compress(self.prompts, kept_S)),
            list(compress(self.segments, kept_S)),
        )

    def slice(self, start: int, stop: int) -> BlockSequences:
        """Views of the sequences [start, stop)."""
        row, last_row = _bounds(self.plain.num_rows, start, stop)
        token, last_token = _bounds(self.plain.num_tokens, start, stop)
        return BlockSequences(
            PlainColumns(*(values[start:stop] for values in self.plain.in_order())),  # type: ignore[arg-type]
            self.token_ids_T[token:last_token],
            self.rows.slice(row, last_row),
            self.mask_N[row:last_row],
            self.prompts[start:stop],
            self.segments[start:stop],
        )

    def sequences(self) -> list[LabeledSequence]:
        """Views of the block's arrays."""
        return _sequences_of(
            self.plain, self.token_ids_T, self.rows, self.mask_N, self.prompts, self.segments
        )


def _bounds(lengths: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    first = int(lengths[:start].sum(dtype=np.int64))
    return first, first + int(lengths[start:stop].sum(dtype=np.int64))


def _sequences_of(
    plain: PlainColumns,
    token_ids_T: np.ndarray,
    rows: LabelRows,
    mask_N: np.ndarray,
    prompts: Sequence[np.ndarray | None],
    segments: Sequence[np.ndarray | None],
) -> list[LabeledSequence]:
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
