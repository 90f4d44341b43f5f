"""Words of shell lines that run on other machines."""

from __future__ import annotations

import shlex


def path_word(path: str) -> str:
    """A path as one word; `~/x` stays a place in the home of whoever runs the line there."""
    if path.startswith("~/"):
        return "~/" + shlex.quote(path.removeprefix("~/"))
    return shlex.quote(path)
