"""Paths on the nodes as Slurm's script says them: `~` and variables are those of the user there."""

from __future__ import annotations

import re
from collections.abc import Iterable

VARIABLE = r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})"
_START = rf"(?:/|~(?=/|$)|{VARIABLE}(?=/|$))"
_PLAIN = re.compile(rf"{_START}(?:[A-Za-z0-9._/-]|{VARIABLE})*")
_ANY = re.compile(rf"{_START}(?:[^:,\s\"'$`\\~]|{VARIABLE})*")


def is_plain_path(path: str) -> bool:
    """Whether it is whole, or begins with `~` or a variable, and has plain characters alone."""
    return _PLAIN.fullmatch(path) is not None


def check_plain_path(path: str) -> str:
    """Raises ValueError for what is no path of plain characters."""
    if not is_plain_path(path):
        raise ValueError(
            "a folder of the nodes starts with '/', '~/' or a variable such as $SCRATCH, and has letters, "
            "digits, '.', '_', '-', '/' and variables; write it so"
        )
    return path


def check_mount(mount: str) -> str:
    """Raises ValueError for what is neither a folder nor two with a colon between them."""
    if mount.count(":") > 1 or not all(map(_ANY.fullmatch, mount.split(":"))):
        raise ValueError(
            "a mount is '/path' or '/path/outside:/path/inside', where each starts with '/', '~/' or a "
            "variable such as $SCRATCH and has no space, comma, quote or backslash; write it so"
        )
    return mount


def is_looked_up(path: str) -> bool:
    """Whether only a shell on the node knows where the path is."""
    return "~" in path or "$" in path


def in_quotes(path: str) -> str:
    """A checked path or mount as it stands between double quotes of the script."""
    path = re.sub(r"(?<![^:])~", "$HOME", path)
    return re.sub(VARIABLE, lambda found: f"${{{found[0].strip('${}')}}}", path)


def checks_of(paths: Iterable[str], setting: str) -> str:
    """Lines that end the script where a variable of the paths is not set."""
    names = [found.strip("${}") for path in paths for found in re.findall(VARIABLE, path)]
    rule = f"{setting} names it and it is not set on this node; set it or write the folder"
    return "\n".join(f': "${{{name}:?{rule}}}"' for name in dict.fromkeys(names))
