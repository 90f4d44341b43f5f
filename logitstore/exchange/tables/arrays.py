"""Sequences as Arrow columns, made from whole arrays: no entry of a row becomes a Python object.

Shape legend: T tokens, N label rows, K stored entries, M temperatures.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from logitstore.exchange.tables.columns import SEGMENTS_OF_TOKENS, STUDENT_PROMPT
from logitstore.records import LabelRows
from logitstore.shard.assembling import BlockSequences
from logitstore.shard.sequence_columns import to_flags

MAX_OFFSET = 2**31 - 1
BATCH_SEQUENCES = 256
BATCH_NUMBERS = 2**21
"""Most entries of label rows, and most tokens, of a batch's sequences together; one sequence that has more is
a batch of its own. Arrow counts them in int32."""
TEXT_NUMBERS = 2**18
"""Most numbers that become text at once, which takes many times the memory of the numbers."""
ENOUGH_NUMBERS = 2**17
"""A batch that has so many takes no further block: what is of one block alone is not copied."""


def bounded_groups(blocks: Iterable[BlockSequences], max_numbers: int) -> Iterator[list[BlockSequences]]:
    """At most BATCH_SEQUENCES at once, and of `max_numbers` numbers unless one alone has more."""
    group: list[BlockSequences] = []
    count = size = 0
    for block in itertools.chain.from_iterable(_bounded(block, max_numbers) for block in blocks):
        its_size = block.rows.token_ids_NK.size + len(block.token_ids_T)
        if group and (count + len(block) > BATCH_SEQUENCES or size + its_size > max_numbers):
            yield group
            group, count, size = [], 0, 0
        group.append(block)
        count += len(block)
        size += its_size
        if size >= ENOUGH_NUMBERS:
            yield group
            group, count, size = [], 0, 0
    if group:
        yield group


def _bounded(block: BlockSequences, max_numbers: int) -> Iterator[BlockSequences]:
    """The block, or parts of it that are within the bounds."""
    width = block.rows.token_ids_NK.shape[1]
    sizes_S = block.plain.num_rows.astype(np.int64) * width + block.plain.num_tokens
    ends_S = np.cumsum(sizes_S)
    start = 0
    while start < len(block):
        before = int(ends_S[start - 1]) if start else 0
        stop = int(np.searchsorted(ends_S, before + max_numbers, side="right"))
        stop = max(start + 1, min(stop, start + BATCH_SEQUENCES, len(block)))
        yield block if (start, stop) == (0, len(block)) else block.slice(start, stop)
        start = stop


def record_batch(blocks: Sequence[BlockSequences], schema: pa.Schema) -> pa.RecordBatch:
    """One row per sequence; entries beyond a row's count are left out.

    Raises ValueError where a column would have more than MAX_OFFSET numbers.
    """
    rows = [block.rows for block in blocks]
    plain = [block.plain for block in blocks]
    num_rows = np.concatenate([one.num_rows for one in plain])
    num_tokens = np.concatenate([one.num_tokens for one in plain])

    def numbers(name: str) -> pa.Array:
        return pa.array(np.concatenate([getattr(one, name) for one in plain]), pa.int32())

    def texts(name: str) -> pa.Array:
        return pa.array(list(itertools.chain.from_iterable(getattr(one, name) for one in plain)), pa.utf8())

    def lists(parts: list[np.ndarray], lengths: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(_offsets(lengths), pa.array(_whole(parts)))

    flags = [to_flags(text) for one in plain for text in one.flags]
    columns: dict[str, pa.Array] = {
        "record_id": texts("record_id"),
        "sample_index": numbers("sample_index"),
        "token_ids": lists([block.token_ids_T for block in blocks], num_tokens),
        "prompt_length": numbers("prompt_length"),
        "label_start": numbers("label_start"),
        "loss_mask": lists([block.mask_N for block in blocks], num_rows),
        "finish_reason": texts("finish_reason"),
        "flags": pa.array(flags, pa.list_(pa.utf8())),
        **_entries(rows, num_rows),
        "logsumexp": _nested(_table([one.logsumexp_NM for one in rows]), num_rows),
        "log_tail_mass": _nested(_table([one.log_tail_mass_NM for one in rows]), num_rows),
        "label_logprob": lists([one.label_logprob_N for one in rows], num_rows),
        "label_rank": lists([one.label_rank_N for one in rows], num_rows),
    }
    if STUDENT_PROMPT.name in schema.names:
        prompts = [prompt for block in blocks for prompt in block.prompts]
        columns[STUDENT_PROMPT.name] = _lists_or_null(prompts, STUDENT_PROMPT.type)
    if SEGMENTS_OF_TOKENS.name in schema.names:
        segments = [one for block in blocks for one in block.segments]
        columns[SEGMENTS_OF_TOKENS.name] = _lists_or_null(segments, SEGMENTS_OF_TOKENS.type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _entries(rows: Sequence[LabelRows], num_rows: np.ndarray) -> dict[str, pa.Array]:
    """`top_ids` and `top_logits`, each row as long as it has entries."""
    counts_N = _whole([one.count_N for one in rows])
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
        values_NK = _whole(list(some))
        here_N = counts_N[row : row + len(values_NK)]
        is_full = bool((here_N == width).all())
        found.append(values_NK.ravel() if is_full else values_NK[np.arange(width) < here_N[:, None]])
        row += len(values_NK)
    return _whole(found)


def _table(parts: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [N, M] of all rows."""
    return _whole(parts).astype(np.float32, copy=False)


def _whole(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _nested(values_NM: np.ndarray, num_rows: np.ndarray) -> pa.Array:
    ends = _offsets(np.full(len(values_NM), values_NM.shape[1]))
    return _outer(pa.ListArray.from_arrays(ends, pa.array(values_NM.ravel())), num_rows)


def _outer(inner: pa.Array, lengths: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(_offsets(lengths), inner)


def _lists_or_null(parts: Sequence[np.ndarray | None], kind: pa.DataType) -> pa.Array:
    return pa.array([None if part is None else part.tolist() for part in parts], kind)


def _offsets(lengths: np.ndarray) -> pa.Array:
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if ends[-1] > MAX_OFFSET:
        raise ValueError(
            f"a batch of {ends[-1]:,} numbers is beyond int32 offsets; give fewer sequences at once"
        )
    return pa.array(ends.astype(np.int32))
