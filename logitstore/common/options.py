"""Options that commands of several packages have."""

from __future__ import annotations

import argparse
import json
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
