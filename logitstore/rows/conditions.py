"""Which sequences of a store are meant: an expression over their fields, and sets of record ids.

    (finish_reason = stop or flags lacks truncated) and not record_id in (a, b) and hash < 0.1

Fields are those of `FIELDS` and of the unit that holds the sequence. Texts compare as texts, numbers as
numbers; quotes are needed only around texts with spaces, commas, brackets or comparison signs. `hash` is a
number in [0, 1) made of the record id alone, so `hash < 0.9` and `hash >= 0.9` split every store alike.
Parts of a record (`inputs/parts.py`) have the `hash` of its id, which is their `parent_id`.

What is not known yet, of a unit that was not opened or of a reject, is neither true nor false: an expression
is evaluated to what may be true and what may be false, and a unit is read unless it cannot be true.

Shape legend: S sequences, or units, or rejects.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from logitstore.inputs.parts import parent_id
from logitstore.manifest.fields import ShardEntry
from logitstore.records import SEGMENT_NAMES
from logitstore.shard.reader import ShardReader
from logitstore.shard.sequence_columns import PlainColumns, to_flags

Columns = Mapping[str, np.ndarray]
Outcome = tuple[np.ndarray, np.ndarray]
"""bool [S] each: what may be true, and what may be false."""
UNIT_FIELDS = ("unit_index", "unit_id")


def id_hashes(record_ids: Sequence[str]) -> np.ndarray:
    """float64 [S] in [0, 1): a number of each id that no store, order or run changes; the parts of one record
    have the same, so that a split does not part them."""
    parents = (parent_id(record_id).encode("utf-8", "surrogatepass") for record_id in record_ids)
    digests = b"".join(
        hashlib.blake2b(parent, digest_size=8, person=b"id-hash").digest() for parent in parents
    )
    return (np.frombuffer(digests, ">u8") >> np.uint64(11)).astype(np.float64) / 2.0**53


def texts_of(values: Sequence[object]) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))


def _segment_names(segments_T: np.ndarray | None) -> tuple[str, ...]:
    """The segments that occur among a sequence's tokens; none where they are not known."""
    if segments_T is None:
        return ()
    return tuple(SEGMENT_NAMES[number] for number in np.unique(segments_T).tolist())


@dataclass(frozen=True)
class Block:
    """A block of a shard, of which an expression reads what it asks for."""

    reader: ShardReader
    index: int

    @cached_property
    def plain(self) -> PlainColumns:
        return self.reader.plain_columns(self.index)


FIELDS: dict[str, Callable[[Block], np.ndarray]] = {
    "record_id": lambda block: texts_of(block.plain.record_id),
    "parent_id": lambda block: texts_of([parent_id(name) for name in block.plain.record_id]),
    "sample_index": lambda block: block.plain.sample_index,
    "num_tokens": lambda block: block.plain.num_tokens,
    "num_rows": lambda block: block.plain.num_rows,
    "prompt_length": lambda block: block.plain.prompt_length,
    "finish_reason": lambda block: texts_of(block.plain.finish_reason),
    "flags": lambda block: texts_of([to_flags(text) for text in block.plain.flags]),
    "segments": lambda block: texts_of([_segment_names(one) for one in block.reader.segments(block.index)]),
    "hash": lambda block: id_hashes(block.plain.record_id),
}
SET_FIELDS = ("flags", "segments")
TEXT_FIELDS = ("record_id", "parent_id", "finish_reason", "unit_id", *SET_FIELDS)
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
SET_OPERATORS = ("has", "lacks")


class Condition(Protocol):
    """A part of an expression."""

    def outcome(self, columns: Columns, size: int) -> Outcome:
        """For each of `size` items; a field that `columns` lack may be anything."""
        ...


@dataclass(frozen=True)
class Comparison:
    """One `field operator value`."""

    field: str
    operator: str
    value: str | float

    def outcome(self, columns: Columns, size: int) -> Outcome:
        if self.field not in columns:
            return np.ones(size, bool), np.ones(size, bool)
        found_S = columns[self.field]
        if self.operator in SET_OPERATORS:
            has_S = np.fromiter((self.value in flags for flags in found_S), bool, size)
            true_S = has_S if self.operator == "has" else ~has_S
        else:
            true_S = np.asarray(OPERATORS[self.operator](found_S, self.value), dtype=bool)
        return true_S, ~true_S


@dataclass(frozen=True)
class Membership:
    """`field in (...)`, or a file of record ids."""

    field: str
    values: frozenset[str] | frozenset[int]
    source: str = ""
    """The file that has the values; "" where they stand in an expression."""

    def outcome(self, columns: Columns, size: int) -> Outcome:
        if self.field not in columns:
            return np.ones(size, bool), np.ones(size, bool)
        true_S = np.fromiter((found in self.values for found in columns[self.field].tolist()), bool, size)
        return true_S, ~true_S


@dataclass(frozen=True)
class Negation:
    """What its part is not."""

    part: Condition

    def outcome(self, columns: Columns, size: int) -> Outcome:
        true_S, false_S = self.part.outcome(columns, size)
        return false_S, true_S


@dataclass(frozen=True)
class Joined:
    """All of its parts, or any."""

    parts: tuple[Condition, ...]
    every: bool

    def outcome(self, columns: Columns, size: int) -> Outcome:
        outcomes = [part.outcome(columns, size) for part in self.parts]
        empty = [np.full(size, self.every)], [np.full(size, not self.every)]
        trues = [true_S for true_S, _ in outcomes] or empty[0]
        falses = [false_S for _, false_S in outcomes] or empty[1]
        both, either = np.logical_and.reduce, np.logical_or.reduce
        return (both(trues), either(falses)) if self.every else (either(trues), both(falses))


def named_records(conditions: Sequence[Condition]) -> Iterator[frozenset[str]]:
    """Sets of record ids in each of which all selected sequences are, by conditions that must all hold."""
    for one in conditions:
        if isinstance(one, Joined) and one.every:
            yield from named_records(one.parts)
        elif isinstance(one, Membership) and one.field == "record_id":
            yield frozenset(map(str, one.values))
        elif isinstance(one, Comparison) and one.field == "record_id" and one.operator in ("=", "=="):
            yield frozenset([str(one.value)])


class BlockColumns(Mapping[str, np.ndarray]):
    """The columns of a block that an expression asks for."""

    def __init__(self, block: Block, unit: Columns) -> None:
        self._block, self._unit = block, unit
        self._made: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._unit:
            return self._unit[name]
        if name not in self._made:
            self._made[name] = FIELDS[name](self._block)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._unit or name in FIELDS

    def __iter__(self) -> Iterator[str]:
        return iter([*self._unit, *FIELDS])

    def __len__(self) -> int:
        return len(self._unit) + len(FIELDS)


def unit_columns(entry: ShardEntry, size: int) -> Columns:
    return {"unit_index": np.full(size, entry.unit_index), "unit_id": texts_of([entry.unit_id] * size)}
