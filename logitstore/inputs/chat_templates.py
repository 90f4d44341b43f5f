"""What all that renders chat templates has to know of them, whoever's they are."""

from __future__ import annotations

REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
"""Names of the same in a message: templates read one of them, gpt-oss's "thinking"."""
PROGRAM_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a template raises beside jinja2's TemplateError: it is a program, and may be anybody's."""
