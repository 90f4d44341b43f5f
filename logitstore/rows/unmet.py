"""What a selection names and no sequence has: a misspelt flag, ids of a file that are not in the store.

It is noted while sequences are looked at for the selection's own sake, so nothing more is read for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from logitstore.common.command import nearest
from logitstore.common.store_warning import StoreWarning
from logitstore.rows.conditions import (
    SET_FIELDS,
    TEXT_FIELDS,
    UNIT_FIELDS,
    Columns,
    Comparison,
    Condition,
    Joined,
    Membership,
    Negation,
)

MAX_NAMED = 5
"""Most names that were not found which a message lists; the rest is counted."""
MAX_THERE = 20
"""Most flags and the like that were found which a message lists."""
_FEW_VALUES = ("finish_reason", *SET_FIELDS)
"""Fields of so few values that those which were found are kept, and the nearest is named."""
_EXACT = ("=", "==", "!=", "has", "lacks")


@dataclass
class _Names:
    """The values that one condition names, of a field of texts."""

    field: str
    left: set[str]
    """Those that no sequence had so far."""
    total: int
    source: str
    """The file that they were read from; "" for an expression."""


class Unmet:
    """Which of the names in a selection no sequence has had so far."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self._names = list(_names_in(conditions))
        self._there: dict[str, set[str]] = {
            names.field: set() for names in self._names if names.field in _FEW_VALUES
        }
        self._has_looked = False
        """Whether sequences were looked at. How many is not told: commands look at some more than once."""

    def look_at(self, columns: Columns, size: int) -> None:
        """Sequences of a block. Safe from several threads."""
        self._has_looked |= size > 0
        for names in self._names:
            if names.field in UNIT_FIELDS:
                continue
            if names.left or names.field in self._there:
                found = columns[names.field].tolist()
                values = {value for some in found for value in some} if names.field in SET_FIELDS else found
                names.left.difference_update(values)
                if names.field in self._there:
                    self._there[names.field].update(values)

    def look_at_unit(self, columns: Columns) -> None:
        """A unit, whether or not its sequences are looked at."""
        for names in self._names:
            if names.field in UNIT_FIELDS and names.left:
                names.left.difference_update(columns[names.field].tolist())

    def sentences(self) -> list[str]:
        """One for each condition that names what was not found."""
        return [self._sentence(names) for names in self._names if names.left]

    def warn(self, where: str) -> None:
        """A StoreWarning of each; `where` is the store."""
        for sentence in self.sentences():
            warnings.warn(f"{where}: {sentence}", StoreWarning, stacklevel=2)

    def _sentence(self, names: _Names) -> str:
        some = ", ".join(f"{value!r:.120}" for value in sorted(names.left)[:MAX_NAMED])
        more = len(names.left) - MAX_NAMED
        some += f" and {more:,} more" if more > 0 else ""
        if names.source:
            return (
                f"{len(names.left):,} of {names.total:,} record ids in {names.source} are of no sequence "
                f"that was looked at: {some}"
            )
        what = "unit" if names.field in UNIT_FIELDS else "sequence"
        text = f"the condition names {names.field} {some}, which no {what} that was looked at has"
        if names.field not in self._there or not self._has_looked:
            return text
        there = sorted(self._there[names.field])
        if not there:
            return f"{text}; none of them has any {names.field}"
        listed = ", ".join(there[:MAX_THERE]) + (", ..." if len(there) > MAX_THERE else "")
        close = nearest(min(names.left), there)
        hint = f"{close} " if close.startswith("did") else ""
        return f"{text}; {hint}there are: {listed}"


def _names_in(conditions: Sequence[Condition]) -> Iterator[_Names]:
    for one in conditions:
        if isinstance(one, Joined):
            yield from _names_in(one.parts)
        elif isinstance(one, Negation):
            yield from _names_in([one.part])
        elif isinstance(one, Membership) and one.field in TEXT_FIELDS:
            yield _Names(one.field, set(map(str, one.values)), len(one.values), one.source)
        elif isinstance(one, Comparison) and one.field in TEXT_FIELDS and one.operator in _EXACT:
            yield _Names(one.field, {str(one.value)}, 1, "")
