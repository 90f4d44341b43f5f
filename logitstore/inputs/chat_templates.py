"""What all that renders chat templates has to know of them, whoever's they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""Names of the same in a message: templates read one of them, gpt-oss's "thinking"."""


def template_errors() -> tuple[type[Exception], ...]:
    """What rendering raises where a template refuses messages; loads jinja2, which a store does not need.

    Beside jinja2's own: a template is a program, and may be anybody's.
    """
    from jinja2 import TemplateError

    return (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    )


def with_all_reasoning_names(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its reasoning under each name, since a template reads one of them; as it is where it
    has none, or several that differ."""
    given = [message[name] for name in REASONING_NAMES if message.get(name)]
    if not given or not isinstance(given[0], str) or any(one != given[0] for one in given):
        return message
    return {**message, **dict.fromkeys(REASONING_NAMES, given[0])}
