"""Every measurement in turn, each in a process of its own, and the results page.

A part that fails does not stop the others; the exit status is then 1. A full run also measures the quick
sizes into `<out>/quick`: the reference that `benchmarks check` compares with.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import load_all
from benchmarks.results_page import write_page

PARTS = ("storage", "decode", "fidelity", "labeling", "loading", "training", "faults", "scale")
PART_LIMIT_SEC = 900


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", type=lambda text: tuple(text.split(",")), default=PARTS, metavar="A,B,...")
    parser.add_argument("--page", type=Path, help="results page to write (default: OUT/RESULTS.md)")


def run(args: argparse.Namespace) -> int:
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        raise ValueError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    options = ["--teacher", args.teacher, "--top-k", ",".join(map(str, args.top_k))]
    options += ["--input", args.input] if args.input else []
    options += ["--quiet"] if args.quiet else []
    failed = measure(args.parts, args.out, [*options, *(["--quick"] if args.quick else [])])
    if not args.quick:
        failed += measure(args.parts, args.out / "quick", [*options, "--quick", "--quiet"])
    page = args.page or args.out / "RESULTS.md"
    write_page(load_all(args.out), PARTS, args.out, page)
    print(f"results: {page}" + (f"; failed: {', '.join(failed)}" if failed else ""), file=sys.stderr)
    return int(bool(failed))


def measure(parts: Sequence[str], out: Path, options: Sequence[str]) -> list[str]:
    """Run parts one after the other with their results below `out`; the names of those that failed."""
    failed = []
    for part in parts:
        started = time.perf_counter()
        print(f"bench: {part} ...", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks", part, "--out", str(out), *options]
        try:
            status = subprocess.run(command, timeout=PART_LIMIT_SEC, check=False).returncode
        except subprocess.TimeoutExpired:
            status = 1
            print(f"bench: {part} took more than {PART_LIMIT_SEC} s and was stopped", file=sys.stderr)
        if status:
            failed.append(part)
        print(f"bench: {part} status {status}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return failed
