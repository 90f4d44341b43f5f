"""From a server's completion to label rows: ids, log-probabilities and ranks, each position checked.

The server is asked for token ids in place of texts (`return_token_ids`, `return_tokens_as_token_ids`,
`prompt_logprobs`: vLLM's additions to the API), since a text does not say which token it was.

Shape legend: N label rows, K stored entries, C = K + 1 columns, the actual token's first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labeler.teacher.label_rows import CapturedColumns
from labeler.teacher.openai.calls import MalformedAnswerError, RefusedError

ID_PREFIX = "token_id:"


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, taken apart."""

    given: CapturedColumns
    """Rows of the given tokens but the first; no row where they were not asked for."""
    written_ids: tuple[int, ...]
    written: CapturedColumns
    """Rows of the written tokens; no row where they were not asked for."""
    finish_reason: str


def read_completion(
    answer: Any, given_ids: Sequence[int], top_k: int, *, with_given: bool, with_written: bool
) -> Completion:
    """The parts of an answer to a completion of `given_ids`.

    Raises MalformedAnswerError where it is not that, RefusedError where the server's filter cut it off.
    """
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or len(choices) != 1:
        raise MalformedAnswerError("the answer has not exactly one choice")
    choice = choices[0]
    reason = choice.finish_reason
    if reason == "content_filter":
        raise RefusedError("the server's filter cut the response off", "content_filter")
    if reason not in ("stop", "length"):
        raise MalformedAnswerError(f"the answer ended with {reason!r}")
    extra = choice.model_extra or {}
    seen = extra.get("prompt_token_ids")
    if list(seen or ()) != list(given_ids):
        raise MalformedAnswerError(
            "the answer does not repeat the prompt's token ids; the server must know return_token_ids, as "
            "vLLM's does"
        )
    written_ids = _ids(extra.get("token_ids"))
    given = written = _stacked([], top_k)
    if with_given:
        given = _given_rows(extra.get("prompt_logprobs"), given_ids, top_k)
    if with_written:
        written = _written_rows(choice.logprobs, written_ids, top_k)
    return Completion(given, tuple(written_ids), written, reason)


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise MalformedAnswerError("the answer has no token ids; the server must know return_token_ids")
    return value


def _given_rows(rows: Any, given_ids: Sequence[int], top_k: int) -> CapturedColumns:
    if not isinstance(rows, list) or len(rows) != len(given_ids):
        raise MalformedAnswerError("the answer has no prompt_logprobs for every given token")
    found = []
    for row, actual in zip(rows[1:], given_ids[1:], strict=True):
        if not isinstance(row, Mapping):
            raise MalformedAnswerError("a row of prompt_logprobs is no object")
        try:
            values = {int(name): float(entry["logprob"]) for name, entry in row.items()}
            rank = int(row[str(actual)]["rank"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MalformedAnswerError(f"a row of prompt_logprobs cannot be read ({error!r})") from None
        found.append(_columns(values, actual, top_k, rank))
    return _stacked(found, top_k)


def _written_rows(logprobs: Any, written_ids: Sequence[int], top_k: int) -> CapturedColumns:
    rows = getattr(logprobs, "top_logprobs", None)
    values_of_actual = getattr(logprobs, "token_logprobs", None)
    if not isinstance(rows, list) or not isinstance(values_of_actual, list):
        raise MalformedAnswerError("the answer has no logprobs")
    if not len(rows) == len(values_of_actual) == len(written_ids):
        raise MalformedAnswerError("the answer has not one row of logprobs for each token")
    found = []
    for row, actual, value in zip(rows, written_ids, values_of_actual, strict=True):
        if not isinstance(row, Mapping) or value is None:
            raise MalformedAnswerError("a row of logprobs is missing")
        values = {_id_of(name): _number(logprob) for name, logprob in row.items()}
        values[actual] = _number(value)
        # The API gives no rank: outside the entries it is at least the next.
        rank = sum(other >= values[actual] for other in values.values())
        found.append(_columns(values, actual, top_k, max(rank, 1)))
    return _stacked(found, top_k)


def _number(logprob: Any) -> float:
    try:
        return float(logprob)
    except (TypeError, ValueError, OverflowError):
        raise MalformedAnswerError(f"a logprob is {logprob!r:.60}, and must be a number") from None


def _id_of(name: str) -> int:
    if not name.startswith(ID_PREFIX) or not name[len(ID_PREFIX) :].isdigit():
        raise MalformedAnswerError(
            f"a token is named {name!r} and not by its id; the server must know return_tokens_as_token_ids"
        )
    return int(name[len(ID_PREFIX) :])


def _columns(
    values: Mapping[int, float], actual: int, top_k: int, rank: int
) -> tuple[list[int], list[float], int]:
    """Ids and values of a row, the actual token's first, the `top_k` largest after it."""
    largest = sorted(values.items(), key=lambda item: (-item[1], item[0]))[:top_k]
    if len(largest) < top_k:
        raise MalformedAnswerError(
            f"a row has {len(values)} entries where labels.top_k = {top_k} were asked for; lower "
            "labels.top_k to what the server gives"
        )
    return [actual, *(item[0] for item in largest)], [values[actual], *(item[1] for item in largest)], rank


def _stacked(rows: list[tuple[list[int], list[float], int]], top_k: int) -> CapturedColumns:
    return CapturedColumns(
        np.array([ids for ids, _, _ in rows], np.int64).reshape(len(rows), top_k + 1),
        np.array([values for _, values, _ in rows], np.float32).reshape(len(rows), top_k + 1),
        np.array([rank for _, _, rank in rows], np.int64),
    )
