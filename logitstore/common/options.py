"""Options that commands of several packages have, and the numbers that options take."""

from __future__ import annotations

import argparse
import json
import math
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
    except (OSError, ValueError) as error:
        raise UnsupportedInputError(
            f"--storage-options {path} cannot be read as JSON ({type(error).__name__}); give a file that "
            'holds an object such as {"client_kwargs": {"endpoint_url": "https://..."}}'
        ) from error
    if not isinstance(options, dict):
        raise UnsupportedInputError(f"--storage-options {path} must hold a JSON object")
    return options


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} must be at least 0")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value} must lie in (0, 1]")
    return value


def amount(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{value} must be a finite number of at least 0")
    return value


def above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{value} must be a finite number above 0")
    return value


def seconds(text: str) -> float:
    """A NaN would be neither younger nor older than anything."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{value} must be a number of seconds")
    return value
