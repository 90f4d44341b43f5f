"""Sequences as Arrow columns, made from whole arrays: no entry of a row becomes a Python object.

Shape legend: T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from logitstore.exchange.tables.columns import SEGMENTS_OF_TOKENS, STUDENT_PROMPT
from logitstore.records import LabeledSequence, LabelRows

MAX_OFFSET = 2**31 - 1
BATCH_SEQUENCES = 256
BATCH_NUMBERS = 2**21
"""Of a batch: entries of label rows, and tokens, of its sequences together; one sequence that has more is a
batch of its own. Arrow counts them in int32."""


def bounded_groups(sequences: Iterable[LabeledSequence]) -> Iterator[list[LabeledSequence]]:
    """At most BATCH_SEQUENCES at once, and of BATCH_NUMBERS numbers unless one alone has more."""
    group: list[LabeledSequence] = []
    size = 0
    for sequence in sequences:
        its_size = sequence.rows.token_ids_NK.size + len(sequence.token_ids_T)
        if group and (len(group) == BATCH_SEQUENCES or size + its_size > BATCH_NUMBERS):
            yield group
            group, size = [], 0
        group.append(sequence)
        size += its_size
    if group:
        yield group


def record_batch(sequences: Sequence[LabeledSequence], schema: pa.Schema) -> pa.RecordBatch:
    """One row per sequence; entries beyond a row's count are left out.

    Raises ValueError where a column would have more than MAX_OFFSET numbers.
    """
    rows = [sequence.rows for sequence in sequences]
    num_rows = [one.num_rows for one in rows]
    columns: dict[str, pa.Array] = {
        "record_id": pa.array([one.record_id for one in sequences], pa.utf8()),
        "sample_index": pa.array([one.sample_index for one in sequences], pa.int32()),
        "token_ids": _lists([one.token_ids_T for one in sequences], pa.int32()),
        "prompt_length": pa.array([one.prompt_length for one in sequences], pa.int32()),
        "label_start": pa.array([one.label_start for one in sequences], pa.int32()),
        "loss_mask": _lists([one.loss_mask_N for one in sequences], pa.bool_()),
        "finish_reason": pa.array([one.finish_reason for one in sequences], pa.utf8()),
        "flags": pa.array([list(one.flags) for one in sequences], pa.list_(pa.utf8())),
        **_entries(rows, num_rows),
        "logsumexp": _nested(_table([one.logsumexp_NM for one in rows]), num_rows),
        "log_tail_mass": _nested(_table([one.log_tail_mass_NM for one in rows]), num_rows),
        "label_logprob": _lists([one.label_logprob_N for one in rows], pa.float32()),
        "label_rank": _lists([one.label_rank_N for one in rows], pa.int32()),
    }
    if STUDENT_PROMPT.name in schema.names:
        prompts = [one.student_prompt_ids for one in sequences]
        columns[STUDENT_PROMPT.name] = _lists_or_null(prompts, STUDENT_PROMPT.type)
    if SEGMENTS_OF_TOKENS.name in schema.names:
        segments = [one.segments_T for one in sequences]
        columns[SEGMENTS_OF_TOKENS.name] = _lists_or_null(segments, SEGMENTS_OF_TOKENS.type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _entries(rows: Sequence[LabelRows], num_rows: Sequence[int]) -> dict[str, pa.Array]:
    """`top_ids` and `top_logits`, each row as long as it has entries."""
    counts_N = np.concatenate([one.count_N for one in rows])
    ends = _offsets(counts_N)
    columns = {
        "top_ids": _stored([one.token_ids_NK for one in rows], counts_N),
        "top_logits": _stored([one.logits_NK for one in rows], counts_N),
    }
    return {
        name: _outer(pa.ListArray.from_arrays(ends, pa.array(values)), num_rows)
        for name, values in columns.items()
    }


def _stored(parts: Sequence[np.ndarray], counts_N: np.ndarray) -> np.ndarray:
    """The first `counts_N` values of each row, one row after the other; blocks may be of unlike width."""
    found: list[np.ndarray] = []
    row = 0
    for width, some in itertools.groupby(parts, key=lambda part: part.shape[1]):
        values_NK = np.concatenate(list(some))
        here_N = counts_N[row : row + len(values_NK)]
        is_full = bool((here_N == width).all())
        found.append(values_NK.ravel() if is_full else values_NK[np.arange(width) < here_N[:, None]])
        row += len(values_NK)
    return found[0] if len(found) == 1 else np.concatenate(found)


def _table(parts: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [N, M] of all rows."""
    return np.concatenate(parts).astype(np.float32, copy=False)


def _nested(values_NM: np.ndarray, num_rows: Sequence[int]) -> pa.Array:
    ends = _offsets(np.full(len(values_NM), values_NM.shape[1]))
    return _outer(pa.ListArray.from_arrays(ends, pa.array(values_NM.ravel())), num_rows)


def _outer(inner: pa.Array, lengths: Sequence[int]) -> pa.Array:
    return pa.ListArray.from_arrays(_offsets(np.array(lengths)), inner)


def _lists(parts: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    lengths = np.array([len(part) for part in parts])
    return pa.ListArray.from_arrays(_offsets(lengths), pa.array(np.concatenate(parts)).cast(kind))


def _lists_or_null(parts: Sequence[np.ndarray | None], kind: pa.DataType) -> pa.Array:
    return pa.array([None if part is None else part.tolist() for part in parts], kind)


def _offsets(lengths: np.ndarray) -> pa.Array:
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if ends[-1] > MAX_OFFSET:
        raise ValueError(
            f"a batch of {ends[-1]:,} numbers is beyond int32 offsets; give fewer sequences at once"
        )
    return pa.array(ends.astype(np.int32))
