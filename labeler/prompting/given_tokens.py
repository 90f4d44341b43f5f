"""What a record says of its own tokens: ids, loss mask and segments, checked.

All raise BadRecordError with the field, its value and the rule. Shape legend: T tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from labeler.errors import BadRecordError
from labeler.prompting.bad_records import field_value, shown
from labeler.teacher.response_ends import MAX_TOKEN_ID
from logitstore.records import SEGMENT_NAMES, Segment


def given_mask(
    record: dict[str, Any], name: str, prompt_ids: list[int], response_ids: list[int] | None
) -> np.ndarray:
    """bool over the record's ids, which training losses count."""
    value, wanted = field_value(record, name), len(prompt_ids) + len(response_ids or ())
    if not isinstance(value, list) or len(value) != wanted or not all(item in (0, 1) for item in value):
        raise BadRecordError(
            f"field {name!r} is {shown(value)}, it must be a list of {wanted} zeros and ones, one for each "
            "token id; correct the record",
            "bad_type",
        )
    return np.array(value, bool)


def given_segments(record: dict[str, Any], name: str, num_tokens: int) -> np.ndarray:
    """uint8 over the record's ids, given as names or numbers."""
    value = field_value(record, name)
    numbers = {**{label: number for number, label in enumerate(SEGMENT_NAMES)}, **{i: i for i in Segment}}
    if (
        not isinstance(value, list)
        or len(value) != num_tokens
        or not all(type(item) in (str, int) and item in numbers for item in value)
    ):
        raise BadRecordError(
            f"field {name!r} is {shown(value)}, it must be a list of {num_tokens} segments, one for each "
            f"token id: {', '.join(SEGMENT_NAMES)}, or their numbers; correct the record",
            "bad_type",
        )
    return np.array([numbers[item] for item in value], np.uint8)


def mask_of_segments(segments_T: np.ndarray, mask_T: np.ndarray | None, prompt_length: int) -> np.ndarray:
    """bool, what counts: all but the context, and of that what a given mask has."""
    if bool((segments_T[:prompt_length] != Segment.CONTEXT).any()):
        raise BadRecordError(
            "a token of its prompt has another segment than context; put what the assistant wrote into "
            "response_token_ids, or give all ids as token_ids",
            "bad_segments",
        )
    counted_T = segments_T != Segment.CONTEXT
    return counted_T if mask_T is None else counted_T & mask_T


def given_token_ids(record: dict[str, Any], name: str) -> list[int]:
    """The ids in a field."""
    value = field_value(record, name)
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise BadRecordError(
            f"field {name!r} is {shown(value)}, it must be a list of whole numbers; correct the record",
            "bad_type",
        )
    if not value:
        raise BadRecordError(f"field {name!r} is empty; give it token ids", "empty")
    for token_id in value:
        if not 0 <= token_id <= MAX_TOKEN_ID:
            raise BadRecordError(
                f"field {name!r} holds the token id {token_id}, which no vocabulary has; tokenise with the "
                "teacher's tokenizer",
                "bad_token_id",
            )
    return value
