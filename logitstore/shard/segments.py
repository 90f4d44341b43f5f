"""The optional column of segments: what each token is within its sequence, run-length coded (FORMAT.md).

Shape legend: T tokens, S sequences, R runs of equal segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from logitstore.codec.loops import loops_for
from logitstore.codec.streams import Unpacker, damaged, pack, take_planes, to_planes
from logitstore.manifest.fields import SEGMENTS
from logitstore.records import LabeledSequence, Segment

NUM_STREAMS = 7
MAX_SEGMENTED_TOKENS = (1 << 24) - 1
"""Tokens of one sequence with segments: a run's length has three bytes."""


def encode_segments(block: Sequence[LabeledSequence]) -> bytes:
    """Per sequence its number of runs, 0 for none known; of all runs the segment, then the length less 1."""
    counts: list[int] = []
    segments: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for sequence in block:
        segments_R, lengths_R = runs_of(sequence.segments_T)
        counts.append(len(segments_R))
        segments.append(segments_R)
        lengths.append(lengths_R - 1)
    return pack(
        [
            *to_planes(np.array(counts, np.int64), 3),
            np.concatenate(segments),
            *to_planes(np.concatenate(lengths), 3),
        ]
    )


def decode_segments(
    packed: memoryview, num_tokens_S: np.ndarray, *, verify_checksum: bool
) -> list[np.ndarray | None]:
    """uint8 [T] of each sequence, None where its segments are not known. Raises CorruptShardError."""
    unpacker = Unpacker(packed, NUM_STREAMS, SEGMENTS, verify_checksum=verify_checksum)
    num_tokens = int(num_tokens_S.sum(dtype=np.int64))
    loops = loops_for(num_tokens)
    counts_S = take_planes(unpacker, len(num_tokens_S), loops).astype(np.int64)
    num_runs = int(counts_S.sum())
    if num_runs > num_tokens:
        raise damaged(f"the segments of a block have {num_runs} runs over {num_tokens} tokens")
    segments_R = unpacker.take(num_runs)
    if num_runs and int(segments_R.max()) >= len(Segment):
        raise damaged(f"a run of tokens has segment {int(segments_R.max())}, which the format does not have")
    lengths_R = take_planes(unpacker, num_runs, loops).astype(np.int64) + 1
    has_S = counts_S > 0
    found_S = np.zeros(len(num_tokens_S), np.int64)
    np.add.at(found_S, np.repeat(np.arange(len(num_tokens_S)), counts_S), lengths_R)
    if bool((found_S[has_S] != num_tokens_S[has_S]).any()):
        raise damaged("the runs of a sequence's segments do not add up to its tokens")
    joined_T = np.repeat(segments_R, lengths_R)
    ends_S = np.cumsum(found_S)
    return [
        joined_T[end - length : end] if has else None
        for end, length, has in zip(ends_S.tolist(), found_S.tolist(), has_S.tolist(), strict=True)
    ]


def runs_of(segments_T: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 segment, int64 length) of each run; none where there are no segments."""
    if segments_T is None or not len(segments_T):
        return np.empty(0, np.uint8), np.empty(0, np.int64)
    starts_R = np.flatnonzero(np.diff(segments_T, prepend=segments_T[0] ^ 1))
    lengths_R = np.diff(np.append(starts_R, len(segments_T)))
    return segments_T[starts_R].astype(np.uint8), lengths_R.astype(np.int64)
