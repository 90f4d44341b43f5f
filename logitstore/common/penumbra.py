"""The console command `penumbra`: one front door to all packages.

It is found by its installed script and not through the current folder, so that a user's own `trainer.py` or
`cluster/` never stands before it, and it imports the package of the command asked for alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from logitstore.common.command import run_named

PROGRAMS = {
    "label": ("labeler.__main__", "let a teacher label prompts into a store"),
    "store": ("logitstore.__main__", "look into, check, convert and join stores"),
    "train": ("trainer.__main__", "train a student from stores, evaluate it"),
    "cluster": ("cluster.__main__", "run labeling jobs on a Ray cluster, describe clusters"),
    "bench": ("benchmarks.__main__", "measure, choose K, estimate cost; the demo"),
}
"""Each command's module, as a name: nothing is imported before it is asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_named(PROGRAMS, sys.argv[1:] if argv is None else argv, _load)


def _load(module: str) -> Callable[..., int]:
    return importlib.import_module(module).main


if __name__ == "__main__":
    sys.exit(main())
