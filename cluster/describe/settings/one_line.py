"""Sections whose texts stay in their line of whatever is rendered from them."""

from __future__ import annotations

import re
from typing import Self

from pydantic import model_validator

from logitstore.common.section import Section

SCRIPTS = ("setup",)
"""Settings that are whole lines of a script; every other text is a word or a line of its own."""
_NO_WRITING = re.compile(r"[^\t\x20-\x7e\x80-\ud7ff\ue000-\U0010ffff]")
"""Control characters, as the end of a line that Windows writes, and halves of letters."""


class OneLineSection(Section):
    @model_validator(mode="after")
    def _of_one_line(self) -> Self:
        """A newline in a setting would begin a line of the description that nobody meant."""
        for name, value in self:
            if name in SCRIPTS:
                _check_script(name, value)
            elif (text := _unprintable(value)) is not None:
                raise ValueError(
                    f"{name} = {text!r} holds a newline or control character; write it in one line"
                )
        return self


def _check_script(name: str, script: str) -> None:
    """Comments may have any signs of writing."""
    for number, line in enumerate(script.split("\n"), start=1):
        if wrong := _NO_WRITING.search(line):
            raise ValueError(
                f"{name}: line {number}, {line!r}, holds {wrong[0]!r}, which is no character of a script; "
                "leave it out"
            )


def _unprintable(value: object) -> str | None:
    """The first text in a setting, or in its lists and tables, that is not of one printable line."""
    if isinstance(value, str):
        return None if value.isprintable() else value
    items = (
        [*value, *value.values()]
        if isinstance(value, dict)
        else value
        if isinstance(value, tuple | list)
        else []
    )
    return next((text for item in items if (text := _unprintable(item)) is not None), None)
