"""Options that commands of several packages have, and the numbers that options take."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from logitstore.errors import UnsupportedInputError


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage-options",
        type=Path,
        metavar="FILE",
        help='JSON object of fsspec options, such as {"client_kwargs": {"endpoint_url": "https://..."}}',
    )


def read_storage_options(path: Path | None) -> dict[str, Any] | None:
    """The JSON object of `--storage-options`; credentials may equally come from the environment.

    Raises:
        UnsupportedInputError: the file cannot be read or holds no JSON object.
    """
    if path is None:
        return None
    try:
        options = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedInputError(
            f"--storage-options {path} cannot be read as JSON ({type(error).__name__}); give a file that "
            'holds an object such as {"client_kwargs": {"endpoint_url": "https://..."}}'
        ) from error
    if not isinstance(options, dict):
        raise UnsupportedInputError(f"--storage-options {path} must hold a JSON object")
    return options


def positive(text: str) -> int:
    return _whole(text, least=1)


def count(text: str) -> int:
    return _whole(text, least=0)


def share(text: str) -> float:
    return _number(text, lambda value: 0 < value <= 1, "a number in (0, 1]")


def amount(text: str) -> float:
    return _number(text, lambda value: 0 <= value < math.inf, "a finite number of at least 0")


def above_zero(text: str) -> float:
    return _number(text, lambda value: 0 < value < math.inf, "a finite number above 0")


def seconds(text: str) -> float:
    """A NaN would be neither younger nor older than anything."""
    return _number(text, math.isfinite, "a number of seconds")


def seeds(text: str) -> int:
    """How many seeds are tried: each takes a run, and all are listed before the first."""
    return _whole(text, least=1, most=10_000)


def _whole(text: str, *, least: int, most: int = 2**63 - 1) -> int:
    """Raises ArgumentTypeError beyond `most`, by default the largest number that counts things here."""
    with contextlib.suppress(ValueError):
        if (value := int(text)) > most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at most {most:,}")
        if value >= least:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {least}")


def _number(text: str, is_right: Callable[[float], bool], rule: str) -> float:
    with contextlib.suppress(ValueError):
        if is_right(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} must be {rule}")
