"""Secrets in a cluster's description, which is written into every file that is rendered from it.

A description names where a secret is (a Secret of Kubernetes, a file on the machines, a variable of the
environment) and never holds one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from logitstore.common.secrets import names_secret, redact_text

_ASSIGNED = re.compile(r"(?<![\w$])([A-Za-z_]\w*)=(?=['\"]?([^\s'\",]*))")
_REFERENCE = re.compile(r"[$`/~<{]")
"""How a value begins that is looked up, or a path, and so no secret itself."""


def places_of_secrets(value: Any, where: str = "") -> Iterator[str]:
    """Dotted names of what is a secret by its name, its form, or as a variable that is given a value."""
    if isinstance(value, Mapping):
        name, given = value.get("name"), value.get("value")
        if isinstance(name, str) and isinstance(given, str) and given and names_secret(name):
            yield f"{where}.{name}"
        for key, item in value.items():
            yield from places_of_secrets(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from places_of_secrets(item, f"{where}[{index}]")
    elif isinstance(value, str):
        yield from _in_text(value, where)


def _in_text(text: str, where: str) -> Iterator[str]:
    variables = [
        name
        for name, value in _ASSIGNED.findall(text)
        if value and names_secret(name) and not _REFERENCE.match(value)
    ]
    if variables:
        yield f"{where} ({variables[0]})"
    elif redact_text(text) != text:
        yield where
