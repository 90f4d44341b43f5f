"""Settings whose text has a form: a wrong one is told in words, and not by a regular expression."""

from __future__ import annotations

import re

from pydantic import AfterValidator


def of_form(pattern: str, form: str) -> AfterValidator:
    """For a text that is wholly of `pattern`. `form` says the rule and the remedy."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(form)
        return text

    return AfterValidator(check)
