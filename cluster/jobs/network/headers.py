"""Headers that every request to a cluster carries: as given, from a file or from Ray's variable.

They may hold secrets, so no message shows a value.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.errors import WrongAccessError

HEADERS_VARIABLE = "RAY_JOB_HEADERS"
"""A JSON table of headers, as for `ray job`."""
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
"""What HTTP can carry; anything else a library would refuse in a message that shows it."""


def headers_of(given: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """`NAME=VALUE`, or `@FILE` with such lines, above those of RAY_JOB_HEADERS.

    Raises WrongAccessError for what is no header.
    """
    found = _of_variable(environ.get(HEADERS_VARIABLE, ""))
    for header in given:
        if header.startswith("@"):
            found |= _of_file(os.path.expanduser(header.removeprefix("@")))
            continue
        name, separator, value = header.partition("=")
        if not separator or not name.strip():
            raise WrongAccessError(f"--header {name!r} must look like NAME=VALUE or @FILE")
        found |= _checked({name.strip(): value.strip()}, "--header")
    return found


def _of_variable(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise WrongAccessError(
            f'{HEADERS_VARIABLE} must hold a JSON table of headers, such as {{"X-Team": "nlp"}}'
        )
    return _checked(found, HEADERS_VARIABLE)


def _of_file(path: str) -> dict[str, str]:
    """The headers of a file: a line for each, NAME=VALUE or as HTTP has them, `NAME: VALUE`."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongAccessError(f"--header @{path} cannot be read: {error}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        # A name of a header has neither of the two, a value may have both.
        match = re.fullmatch(r"\s*([^\s:=]+)\s*[:=]\s*(.*?)\s*", line)
        if match is None:  # the line may hold a secret
            raise WrongAccessError(f"--header @{path}: line {number} must look like NAME=VALUE")
        found |= _checked({match[1]: match[2]}, f"--header @{path}, line {number}")
    return found


def _checked(headers: dict[str, str], where: str) -> dict[str, str]:
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise WrongAccessError(
                f"{where}: {name!r} is no name of a header, which has letters, digits and '-'; write it as "
                "X-Team"
            )
        if not _VALUE.fullmatch(value):
            raise WrongAccessError(
                f"{where}: the value of {name} has a newline, a control character or a letter that no header "
                "can carry; look for what was copied along with it"
            )
    return headers
