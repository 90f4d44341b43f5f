"""The interpreter's name in a description, which stands in lines of several shells."""

from __future__ import annotations

import re


def check_interpreter(python: str) -> str:
    """Raises ValueError for a command with arguments, or nothing: it would be looked for as one file."""
    words = python.split()
    # A folder's name may have a space, so that the words before and after it are parts of one path.
    goes_on = "/" in python and "/" in words[-1] and not any(word[0] in "-/" for word in words[1:])
    is_path = len(words) < 2 or ("/" in words[0] and goes_on)
    if not words or not is_path or python != python.strip() or re.match(r"-|\w*=|.*/$", python):
        raise ValueError(
            "it is one program, without arguments; name the interpreter of the environment, as "
            "/opt/conda/envs/penumbra/bin/python, or activate that before (slurm.setup)"
        )
    return python
