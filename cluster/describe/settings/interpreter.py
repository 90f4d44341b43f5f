"""The interpreter's name in a description, which stands in lines of several shells."""

from __future__ import annotations


def check_interpreter(python: str) -> str:
    """Raises ValueError for a command with arguments, or nothing: it would be looked for as one file."""
    words = python.split()
    if (
        not words
        or python.startswith("-")
        or (len(words) > 1 and ("/" not in words[0] or words[1].startswith("-")))
    ):
        raise ValueError(
            "it is one program, without arguments; name the interpreter of the environment, as "
            "/opt/conda/envs/penumbra/bin/python, or activate that before (slurm.setup)"
        )
    return python
