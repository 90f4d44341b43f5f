"""Lines for sbatch as `slurm.directives` has them, checked by the rules by which sbatch reads them."""

from __future__ import annotations

import re

SAID_ELSEWHERE: dict[str, str] = {
    "--array": "slurm.array, which gives each task its part of the input and its own store",
    "--nodes": "count of the group, by which the job's placement is checked",
    "--time": "slurm.hours, which is held against the warning before the end",
    "--signal": "workers.drain_sec of the job, from which the warning before the end follows",
}
"""Directives that say what a setting says, and would part the script from what was checked."""
_OF_THE_SCRIPT = """
    --mem --mem-per-cpu --mem-per-gpu --gpus --gpus-per-node --gpus-per-task --cpus-per-task --cpus-per-gpu
    --gres --ntasks --ntasks-per-node --tasks-per-node --requeue --no-requeue --output --open-mode --tmp
    --partition --account --job-name
"""
KNOWN = frozenset((*SAID_ELSEWHERE, *_OF_THE_SCRIPT.split()))
"""Names that the script knows; sbatch takes the beginnings of them too, as `--arr=0-3`."""
PATHS = ("--output", "--error", "--input", "--chdir")
_LINE = re.compile(r"""(--[a-z][a-z-]*)(?:(?:=|\s+)((?:[^\s"'#]|"[^"]*"|'[^']*')+))?\s*""")


def split_directive(line: str) -> tuple[str, str]:
    """Name and value of a checked line; the value without quotes, "" where there is none."""
    found = _LINE.fullmatch(line)
    return (found[1], re.sub("[\"']", "", found[2] or "")) if found else (line, "")


def check_directive(line: str) -> str:
    """Raises ValueError for a line that sbatch would refuse, or read otherwise than it is meant."""
    if not line.startswith("--") or not line.isprintable():
        raise ValueError(f"{line!r} must be one line that starts with '--', for example '--qos=high'")
    if line.endswith("="):
        raise ValueError(f"{line!r} ends without its value; write one, or leave the '=' out")
    if not _LINE.fullmatch(line):
        raise ValueError(
            f"{line!r} is more than a name and one value for sbatch, which ends a value at a space or '#'; "
            'put the value in double quotes, as --comment="two words"'
        )
    name, value = split_directive(line)
    if name in SAID_ELSEWHERE:
        raise ValueError(f"{line!r} is said by a setting of its own; set {SAID_ELSEWHERE[name]}")
    whole = sorted(known for known in KNOWN if known.startswith(name)) if name not in KNOWN else []
    if whole:
        raise ValueError(f"{line!r}: sbatch would take {name} for {' or '.join(whole)}; write the whole name")
    if name in PATHS and ("$" in value or value.startswith("~")):
        raise ValueError(
            f"{line!r}: sbatch puts in no variable and no home, so the job would end without a log; write "
            "the folder, with %u for the user and %j for the job"
        )
    return line
