"""Options of the measurements that take the demo's configurations."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """`--configs`, `--out` and `--quiet`, which are the same for all."""
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="folder of the demo-*.toml")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of the JSON")
    parser.add_argument("--quiet", action="store_true", help="print no table")
