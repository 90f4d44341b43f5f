"""One record as it stands in the input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MANIFEST_KEY = "logitstore_manifest"
"""The one key of the first line of a store's JSONL export, by which `import` knows the store."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record of the input, or what stands in its place."""

    file: str
    """Relative to the folder or to the fixed part of the glob; the name alone for a single file."""
    line: int
    """1-based line (JSONL) or row (Parquet, Arrow); 0 where the file as a whole cannot be read."""
    record: dict[str, Any] | None
    error: str | None
    """Why there is no record: a sentence with the value found, the rule and the remedy."""
    part: int = 0
    """Number, from 1, of a record that is a part of one of the input (`parts.py`); 0 for a whole one."""
    parent: dict[str, Any] | None = None
    """For a part, the whole record as it stands in the input."""
    is_row: bool = False
    """Whether it is a row of a table, whose nested objects have every field of their column."""
    text: str | None = None
    """Where there is no record: what stands in its place, if that is text by itself."""

    @property
    def content(self) -> dict[str, Any]:
        """The record as it was meant: in a row of a table, the null fields of nested objects are those that
        other rows have, as the arguments of one tool beside another's."""
        record = self.record or {}
        return {name: _without_nulls(value) for name, value in record.items()} if self.is_row else record

    @property
    def is_manifest(self) -> bool:
        """Whether this is no record but what an export says of its store."""
        return self.record is not None and self.record.keys() == {MANIFEST_KEY}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return [_without_nulls(inner) for inner in value]
    return value


def columns_of_one_name(columns: Sequence[str]) -> str:
    """Why a table with these columns is not read; "" where their names differ."""
    twice = next((name for name, count in Counter(columns).items() if count > 1), None)
    return (
        ""
        if twice is None
        else f"two of its columns are called {twice!r}, of which one would be lost; rename one"
    )
