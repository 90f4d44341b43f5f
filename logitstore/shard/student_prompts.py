"""The optional column of prompts that a student sees in place of the teacher's (FORMAT.md).

Shape legend: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from logitstore.codec.loops import loops_for
from logitstore.codec.streams import Unpacker, damaged, pack, take_planes, to_planes
from logitstore.manifest.fields import STUDENT_PROMPTS
from logitstore.records import LabeledSequence
from logitstore.shard.schema import MAX_BLOCK_TOKENS

NUM_STREAMS = 6


def encode_student_prompts(block: Sequence[LabeledSequence]) -> bytes:
    """Per sequence its prompt's length plus 1, or 0 for none of its own; then the ids of all."""
    prompts = [sequence.student_prompt_ids for sequence in block]
    codes = np.array([0 if prompt is None else len(prompt) + 1 for prompt in prompts], np.int64)
    ids = [prompt for prompt in prompts if prompt is not None]
    joined = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    return pack([*to_planes(codes, 3), *to_planes(joined, 3)])


def decode_student_prompts(
    packed: memoryview, num_sequences: int, *, verify_checksum: bool
) -> list[np.ndarray | None]:
    """int32 [T] of each sequence, None where it has no prompt of its own. Raises CorruptShardError."""
    unpacker = Unpacker(packed, NUM_STREAMS, STUDENT_PROMPTS, verify_checksum=verify_checksum)
    loops = loops_for(num_sequences)
    codes = take_planes(unpacker, num_sequences, loops).astype(np.int64)
    lengths = np.maximum(codes - 1, 0)
    total = int(lengths.sum())
    if total > MAX_BLOCK_TOKENS:
        raise damaged(
            f"the prompts of students in a block have {total} tokens, at most {MAX_BLOCK_TOKENS} fit"
        )
    ids = take_planes(unpacker, total, loops).view(np.int32)
    parts = np.split(ids, np.cumsum(lengths)[:-1]) if num_sequences else []
    return [part if code else None for part, code in zip(parts, codes.tolist(), strict=True)]
