"""Every measurement in turn, each in a process of its own, and the results page; with `--gpus` the GPU part.

A part that fails or takes too long does not stop the others; it is named at the end and the exit status
is then 1. With `--reference` the quick sizes are measured too, of what is always there (the demo's teacher
and prompts, the packaged capture), without plots: what `benchmarks check` compares with.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.advice import recommend
from benchmarks.jobs.processes import end_descendants, end_session
from benchmarks.report.devices import need_gpu
from benchmarks.report.quotes import DOCUMENTS, rewrite
from benchmarks.report.results import load_all
from benchmarks.report.results_page import GPU, write_page

PARTS = (
    "recommend", "storage", "decode", "fidelity", "labeling", "loading", "training", "faults",
    "schedules", "scale", "store", "curation",
)  # fmt: skip
"""`recommend` labels what `storage`, `decode` and `loading` then measure, so it comes first."""
REFERENCE_PARTS = tuple(part for part in PARTS if part not in ("recommend", "faults", "schedules", "store"))
"""Those with figures that `check` can compare: sizes, qualities and quotients of rates."""
PART_LIMIT_SEC = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parts",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=PARTS,
        metavar="A,B,...",
        help=f"only these, or {GPU}, the kernels that --gpus measures as well; '' writes the page alone",
    )
    parser.add_argument("--page", type=Path, help="results page to write (default: OUT/RESULTS.md)")
    parser.add_argument("--reference", type=Path, help="folder for the quick results of `benchmarks check`")
    parser.add_argument(
        "--quotes", action="store_true", help="bring the figures that documents quote up to date"
    )
    recommend.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    unknown = set(args.parts) - {*PARTS, GPU}
    if unknown:
        raise ValueError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join([*PARTS, GPU])}")
    has_kernels = GPU in args.parts or bool(args.gpus and args.parts == PARTS)
    if has_kernels or args.gpus:
        need_gpu()
    args.parts = tuple(part for part in args.parts if part != GPU)
    only = {"recommend": _recommend_options(args)}
    failed = measure(args.parts, args.out, _common_options(args), only)
    if has_kernels:
        failed += measure((GPU,), args.out, ["--parts", "capture,loss,head"])
    if args.reference:
        parts = [part for part in args.parts if part in REFERENCE_PARTS]
        failed += [f"{part} --quick" for part in measure(parts, args.reference, ["--quick", "--quiet"])]
        for unread in args.reference.glob("*.svg"):
            unread.unlink()
    page = args.page or args.out / "RESULTS.md"
    results = load_all(args.out)
    write_page(results, PARTS, args.out, page, failed)
    for document in DOCUMENTS if args.quotes else ():
        rewrite(document, results)
    print(f"bench: results in {page}", file=sys.stderr)
    if failed:
        print(f"bench: FAILED: {', '.join(failed)}; their older results, if any, stand", file=sys.stderr)
    return int(bool(failed))


def _common_options(args: argparse.Namespace) -> list[str]:
    given = {
        "--teacher": args.teacher,
        "--gpus": f"{args.gpus:g}",
        "--input": args.input,
        "--fields": ",".join(f"{role}={name}" for role, name in args.fields.items()),
        "--records": args.records and str(args.records),
        "--capture": args.capture and str(args.capture),
        "--top-k": ",".join(map(str, args.top_k)),
    }
    options = [word for name, value in given.items() if value for word in (name, value)]
    flags = {"--quick": args.quick, "--quiet": args.quiet, "--capture-only": args.capture_only}
    return options + [name for name, is_set in flags.items() if is_set]


def _recommend_options(args: argparse.Namespace) -> list[str]:
    """The options that only `recommend` takes, as this command was given them."""
    parser = argparse.ArgumentParser(add_help=False)
    recommend.add_arguments(parser)
    names = vars(parser.parse_args([]))
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _stop(signal_number: int, _: FrameType | None) -> NoReturn:
    """End the running part with this process; `measure` may not know yet that it has started it."""
    end_descendants()
    sys.exit(128 + signal_number)


def measure(
    parts: Sequence[str], out: Path, options: Sequence[str], only: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Run parts one after the other with their results below `out`; the names of those that failed.

    `only` has further options by part.
    """
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        return [part for part in parts if _run_part(part, out, [*options, *(only or {}).get(part, ())])]
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run_part(part: str, out: Path, options: Sequence[str]) -> int:
    """One part in a session of its own, of which nothing is left afterwards; its exit status."""
    started = time.perf_counter()
    print(f"bench: {part} ...", file=sys.stderr)
    command = [sys.executable, "-P", "-m", "benchmarks", part, "--out", str(out), *options]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait(timeout=PART_LIMIT_SEC)
    except subprocess.TimeoutExpired:
        status = 1
        print(f"bench: {part} took more than {PART_LIMIT_SEC} s and was stopped", file=sys.stderr)
    finally:
        end_session(process)
    print(f"bench: {part} status {status}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return status
