"""Whether a disk has room for what is to be written, asked before the first byte."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from logitstore.errors import UnsupportedInputError
from logitstore.objects.addresses import is_local_uri, normalise_uri

SELECT_LESS = "select fewer sequences, keep a smaller K with --top-k, "


def free_bytes(uri: str) -> int | None:
    """Free bytes of the disk on which a local place is or will be; None for a place on another machine."""
    if not is_local_uri(uri):
        return None
    return shutil.disk_usage(nearest_existing(Path(normalise_uri(uri)))).free


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next((one for one in (path, *path.absolute().parents) if one.exists()), Path(os.sep))


def require_room(uri: str, num_bytes: int, what: str, less: str = "") -> None:
    """Raise UnsupportedInputError where a local disk has no room for `num_bytes`.

    `less` is what to do to need less, ended by a comma and a space.
    """
    free = free_bytes(uri)
    if free is not None and num_bytes > free:
        raise UnsupportedInputError(
            f"{what} needs about {num_bytes:,} bytes at {uri}, and {free:,} are free; make room, {less}"
            "or write to another disk"
        )
