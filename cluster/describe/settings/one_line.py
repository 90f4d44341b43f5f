"""Sections whose texts stay in their line of whatever is rendered from them."""

from __future__ import annotations

import re
from typing import Self

from pydantic import model_validator

from logitstore.common.section import Section

SCRIPTS = ("setup",)
"""Settings that are whole lines of a script; every other text is a word or a line of its own."""


class OneLineSection(Section):
    @model_validator(mode="after")
    def _of_one_line(self) -> Self:
        """A newline in a setting would begin a line of the description that nobody meant."""
        for name, value in self:
            is_script = name in SCRIPTS
            shown = re.sub(r"[\n\t]", "", value) if is_script else value
            if (text := _unprintable(shown)) is not None:
                what = "a control or invisible character; leave it out"
                if not is_script:
                    what = "a newline or control character; write it in one line"
                raise ValueError(f"{name} = {text!r} holds {what}")
        return self


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
