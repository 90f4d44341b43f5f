"""`--where`: which sequences of a store are meant, as comparisons joined by "and".

    record_id >= "doc-100" and record_id < "doc-200" and num_tokens <= 512

Fields are those of `FIELDS`; texts compare as texts, numbers as numbers. Quotes are needed only around
texts with spaces or comparison signs.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitstore.errors import UnsupportedInputError
from logitstore.manifest.fields import ShardEntry
from logitstore.records import SEGMENT_NAMES, LabeledSequence
from logitstore.store import LogitStore

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "has": lambda found, value: value in found,
    "lacks": lambda found, value: value not in found,
}
_COMPARISON = re.compile(
    r"""\s*(\w+)\s*(<=|>=|!=|==|=|<|>|has\b|lacks\b)\s*("[^"]*"|'[^']*'|[^\s<>=!"']+)\s*"""
)
_UNIT_FIELDS = ("unit_index", "unit_id")


def segment_names(sequence: LabeledSequence) -> tuple[str, ...]:
    """The segments that occur among a sequence's tokens; none where they are not known."""
    if sequence.segments_T is None:
        return ()
    return tuple(SEGMENT_NAMES[number] for number in np.unique(sequence.segments_T).tolist())


FIELDS: dict[str, Callable[[LabeledSequence], object]] = {
    "record_id": lambda sequence: sequence.record_id,
    "sample_index": lambda sequence: sequence.sample_index,
    "num_tokens": lambda sequence: len(sequence.token_ids_T),
    "num_rows": lambda sequence: sequence.rows.num_rows,
    "prompt_length": lambda sequence: sequence.prompt_length,
    "finish_reason": lambda sequence: sequence.finish_reason,
    "flags": lambda sequence: sequence.flags,
    "segments": segment_names,
}
_FLAGS_OPERATORS = ("has", "lacks")
_SET_FIELDS = ("flags", "segments")
_TEXT_FIELDS = ("record_id", "finish_reason", "unit_id", *_SET_FIELDS)


@dataclass(frozen=True)
class Comparison:
    """One `field operator value`."""

    field: str
    operator: str
    value: str | int

    def holds(self, found: object) -> bool:
        return _OPERATORS[self.operator](found, self.value)


@dataclass(frozen=True)
class Selection:
    """All comparisons must hold; none selects everything."""

    comparisons: tuple[Comparison, ...] = ()

    def takes_unit(self, entry: ShardEntry) -> bool:
        """Whether the unit can hold a selected sequence; others are not even read."""
        return all(
            comparison.holds(getattr(entry, comparison.field))
            for comparison in self.comparisons
            if comparison.field in _UNIT_FIELDS
        )

    @property
    def reads_segments(self) -> bool:
        """Whether the segments of tokens are asked for."""
        return any(comparison.field == "segments" for comparison in self.comparisons)

    def takes(self, sequence: LabeledSequence) -> bool:
        return all(
            comparison.holds(FIELDS[comparison.field](sequence))
            for comparison in self.comparisons
            if comparison.field in FIELDS
        )

    def sequences(self, store: LogitStore, *, top_k: int | None = None) -> Iterator[LabeledSequence]:
        """The selected sequences in the store's order."""
        for entry in store.shards():
            if entry.name and self.takes_unit(entry):
                with store.open_shard(entry) as reader:
                    yield from filter(self.takes, reader.iter_sequences(top_k=top_k))


def parse_selection(text: str | None) -> Selection:
    """Raises UnsupportedInputError with what is wrong."""
    if not text or not text.strip():
        return Selection()
    comparisons: list[Comparison] = []
    position = 0
    while True:
        match = _COMPARISON.match(text, position)
        if match is None:
            raise _malformed(text, position)
        comparisons.append(_comparison(match[1], match[2], match[3]))
        position = match.end()
        if position == len(text):
            return Selection(tuple(comparisons))
        joint = re.compile(r"and\b", re.IGNORECASE).match(text, position)
        if joint is None:
            raise _malformed(text, position)
        position = joint.end()


def _comparison(field: str, sign: str, value: str) -> Comparison:
    known = [*FIELDS, *_UNIT_FIELDS]
    if field not in known:
        raise UnsupportedInputError(f"--where knows no field {field!r}; fields are {', '.join(known)}")
    plain = value[1:-1] if value[0] in "\"'" else value
    if (field in _SET_FIELDS) != (sign in _FLAGS_OPERATORS):
        raise UnsupportedInputError(
            f"--where cannot read {field} {sign}: 'has' and 'lacks' are for flags and segments, which have "
            "nothing else; write for example: flags has truncated"
        )
    if field == "segments" and plain not in SEGMENT_NAMES:
        raise UnsupportedInputError(
            f"--where knows no segment {plain!r}; a token is one of {', '.join(SEGMENT_NAMES)}"
        )
    if field in _TEXT_FIELDS:
        return Comparison(field, sign, plain)
    try:
        return Comparison(field, sign, int(plain))
    except ValueError:
        raise UnsupportedInputError(
            f"--where compares {field} with {plain!r}, but it is an integer; write for example {field} < 100"
        ) from None


def _malformed(text: str, position: int) -> UnsupportedInputError:
    return UnsupportedInputError(
        f"--where cannot read {text[position:]!r:.60}; write comparisons joined by 'and', for example "
        'record_id >= "a" and record_id < "b"'
    )
