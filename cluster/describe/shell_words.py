"""Words of shell lines that run on other machines."""

from __future__ import annotations

import shlex

from cluster.describe.settings.node_paths import in_quotes, is_plain_path


def path_word(path: str) -> str:
    """A path as one word; `~/x` stays a place in the home of whoever runs the line there, and `$NAME/x` what
    the variable says there."""
    if "$" in path and is_plain_path(path):
        return f'"{in_quotes(path)}"'
    if path.startswith("~/"):
        return "~/" + shlex.quote(path.removeprefix("~/"))
    return shlex.quote(path)
