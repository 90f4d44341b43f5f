"""Selections as people write them: `--where` expressions, files of ids, samples and splits."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from logitstore.common.command import nearest
from logitstore.errors import UnsupportedInputError
from logitstore.records import SEGMENT_NAMES
from logitstore.rows.conditions import (
    FIELDS,
    OPERATORS,
    SET_FIELDS,
    SET_OPERATORS,
    TEXT_FIELDS,
    UNIT_FIELDS,
    Comparison,
    Condition,
    Joined,
    Membership,
    Negation,
)
from logitstore.rows.selection import Selection

MAX_ID_BYTES = 2**26
"""Most bytes of a line of a list of ids: more than any input has for one."""
MAX_DEPTH = 50
_TOKEN = re.compile(r"""\s*("[^"]*"|'[^']*'|<=|>=|!=|==|[=<>(),]|[^\s<>=!"'(),]+)""")
_WORDS = ("and", "or", "not", "in", *SET_OPERATORS)


def parse_selection(text: str | None) -> Selection:
    """Raises UnsupportedInputError with what is wrong."""
    if not text or not text.strip():
        return Selection()
    parser = _Parser(text)
    condition = parser.any_of(0)
    if parser.token:
        raise parser.malformed(parser.start)
    return Selection((condition,), (f"where {text}",))


def select_ids(path: str | Path, *, without: bool = False) -> Selection:
    """The records that a file names, or all others. Raises UnsupportedInputError."""
    record_ids = read_ids(path)
    digest = hashlib.blake2b(digest_size=16)
    for record_id in sorted(record_ids):
        digest.update(record_id.encode("utf-8", "surrogatepass") + b"\0")
    condition = Membership("record_id", record_ids, source=str(path))
    words = "without" if without else "only"
    return Selection((Negation(condition) if without else condition,), (f"{words} {digest.hexdigest()}",))


def select_split(text: str) -> Selection:
    """`FROM:TO`, the records whose hash lies there, for example 0.9:1. Raises UnsupportedInputError."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = -1.0, -1.0
    if not 0 <= low < high <= 1:
        raise UnsupportedInputError(
            f"--split {text!r:.60} must be two numbers of 0 to 1 that ascend, such as 0:0.9 for training and "
            "0.9:1 for the rest"
        )
    return parse_selection(f"hash >= {low!r} and hash < {high!r}")


def read_ids(path: str | Path) -> frozenset[str]:
    """The record ids of a text file, one a line; a line in double quotes is a JSON string.

    Raises UnsupportedInputError for a file that is not there or has no id.
    """
    try:
        with Path(path).open("rb") as file:
            record_ids = frozenset(
                _id_of(line, f"{path}:{number}")
                for number, line in enumerate(_lines(file), start=1)
                if line.strip()
            )
    except OSError as error:
        raise UnsupportedInputError(
            f"the list of ids {path} cannot be read ({error.strerror}); give a file with one record id a line"
        ) from None
    if not record_ids:
        raise UnsupportedInputError(f"{path} has no record id; give a file with one record id a line")
    return record_ids


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines without their ends, and without the mark of UTF-8 that some editors put before the first."""
    for index, line in enumerate(iter(lambda: file.readline(MAX_ID_BYTES + 3), b"")):
        text = line.rstrip(b"\r\n")
        yield text.removeprefix(codecs.BOM_UTF8) if index == 0 else text


def _id_of(line: bytes, where: str) -> str:
    if len(line) > MAX_ID_BYTES:
        raise UnsupportedInputError(
            f"{where}: a line of a list of ids has at most {MAX_ID_BYTES:,} bytes; give one record id a line"
        )
    try:
        text = line.decode()
        quoted = len(text) > 1 and text[0] == text[-1] == '"'
        return str(json.loads(text)) if quoted else text
    except ValueError:
        pass
    raise UnsupportedInputError(
        f"{where}: {line[:60]!r} is no record id in UTF-8, nor a JSON string of one; "
        "save the list as text in UTF-8, not compressed"
    )


class _Parser:
    """Recursive descent over `any_of := all_of ("or" all_of)*`, and so on."""

    def __init__(self, text: str) -> None:
        self._text, self.start, self.token, self._end = text, 0, "", 0
        self._advance()

    def any_of(self, depth: int) -> Condition:
        parts = [self._all_of(depth)]
        while self._took("or"):
            parts.append(self._all_of(depth))
        return parts[0] if len(parts) == 1 else Joined(tuple(parts), every=False)

    def _all_of(self, depth: int) -> Condition:
        parts = [self._one(depth)]
        while self._took("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else Joined(tuple(parts), every=True)

    def _one(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise UnsupportedInputError(
                f"--where has more than {MAX_DEPTH} brackets in brackets; use --ids FILE"
            )
        if self._took("not"):
            return Negation(self._one(depth + 1))
        if self._took("("):
            condition = self.any_of(depth + 1)
            if not self._took(")"):
                raise self.malformed(self.start)
            return condition
        return self._comparison()

    def _comparison(self) -> Condition:
        start, field = self.start, self._word(self.start)
        negated = self._took("not")
        sign = self.token.lower()
        if sign == "in" or negated:
            if not self._took("in"):
                raise self.malformed(start)
            _check_field(field)
            if field in SET_FIELDS:
                raise UnsupportedInputError(
                    f"--where cannot read {field} in; write {field} has a or {field} has b"
                )
            condition = Membership(field, frozenset(_value(field, value) for value in self._values(start)))  # type: ignore[arg-type]
            return Negation(condition) if negated else condition
        if sign not in OPERATORS and sign not in SET_OPERATORS:
            raise self.malformed(start)
        self._advance()
        value = self._word(start)
        _check_field(field)
        if (field in SET_FIELDS) != (sign in SET_OPERATORS):
            raise UnsupportedInputError(
                f"--where cannot read {field} {sign}: 'has' and 'lacks' are for flags and segments, which "
                "have nothing else; write for example: flags has truncated"
            )
        return Comparison(field, sign, _value(field, value))

    def _values(self, start: int) -> list[str]:
        if not self._took("("):
            raise self.malformed(start)
        values = [self._word(start)]
        while self._took(","):
            values.append(self._word(start))
        if not self._took(")"):
            raise self.malformed(start)
        return values

    def _word(self, start: int) -> str:
        """The present token, which must be a field or a value."""
        word = self.token
        if not word or word in "()," or word in OPERATORS or word.lower() in _WORDS:
            raise self.malformed(start)
        self._advance()
        return word[1:-1] if word[0] in "\"'" else word

    def _took(self, token: str) -> bool:
        if self.token.lower() != token:
            return False
        self._advance()
        return True

    def _advance(self) -> None:
        if not self._text[self._end :].strip():
            self.start, self.token = len(self._text), ""
            return
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            raise self.malformed(self._end)
        self.start, self.token, self._end = match.start(1), match[1], match.end()

    def malformed(self, start: int) -> UnsupportedInputError:
        return UnsupportedInputError(
            f"--where cannot read {self._text[start:]!r:.60}; write comparisons joined by 'and', 'or', 'not' "
            'and brackets, for example record_id >= "a" and (num_tokens < 100 or finish_reason in (a, b)), '
            "and quote texts that hold spaces, commas, brackets or signs"
        )


def _nearest_first(name: str, known: Sequence[str]) -> str:
    """ "did you mean 'x'? ", or nothing where none is near."""
    hint = nearest(name, known)
    return f"{hint} " if hint.startswith("did you") else ""


def _check_field(field: str) -> None:
    known = [*FIELDS, *UNIT_FIELDS]
    if field not in known:
        raise UnsupportedInputError(
            f"--where knows no field {field!r}; {_nearest_first(field, known)}fields are {', '.join(known)}"
        )


def _value(field: str, text: str) -> str | float:
    if field == "segments" and text not in SEGMENT_NAMES:
        raise UnsupportedInputError(
            f"--where knows no segment {text!r}; {_nearest_first(text, SEGMENT_NAMES)}a token is one of "
            f"{', '.join(SEGMENT_NAMES)}"
        )
    if field in TEXT_FIELDS:
        return text
    try:
        number = float(text) if field == "hash" else int(text)
        if math.isnan(number):
            raise ValueError
        return number
    except ValueError:
        kind = "a number of 0 to 1" if field == "hash" else "an integer"
        raise UnsupportedInputError(
            f"--where compares {field} with {text!r}, but it is {kind}; write for example {field} < "
            f"{0.5 if field == 'hash' else 100}"
        ) from None
