"""What every section of a configuration is. The only module here that imports pydantic; no store needs it."""

from __future__ import annotations

import os
import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

HomePath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, or a name that may be one: `~/x` is a place in the user's home, as in a shell."""


INTEGER_BITS = 64
"""Of the whole numbers that TOML defines; larger ones are read by Python alone, and by few who count."""


class Section(BaseModel):
    """Frozen, without unknown settings, each one described by the docstring below it, and each number finite:
    TOML has `inf` and `nan`, which no setting means and JSON does not hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _of_64_bits(self) -> Self:
        """What is reckoned with it would end in an error that nobody foresaw."""
        for name, value in self:
            if (number := _beyond(value)) is not None:
                raise ValueError(
                    f"{name} has {number.bit_length()} bits; a whole number of TOML has at most "
                    f"{INTEGER_BITS} with its sign, so write a smaller one"
                )
        return self


def _beyond(value: object) -> int | None:
    """The first whole number of a value, or of the lists and tables in it, that TOML does not have."""
    if isinstance(value, int):
        return None if -(2 ** (INTEGER_BITS - 1)) <= value < 2 ** (INTEGER_BITS - 1) else value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((found for item in items if (found := _beyond(item)) is not None), None)


def of_form(pattern: str, form: str) -> AfterValidator:
    """For a text that is wholly of `pattern`; a wrong one is told in the words of `form`, which says the rule
    and the remedy, and not by a regular expression."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(form)
        return text

    return AfterValidator(check)
