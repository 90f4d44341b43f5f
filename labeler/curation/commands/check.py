"""`penumbra label check`: the responses of a store that a program of the user's finds right."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from labeler.curation.check import CheckSettings, check_responses
from labeler.curation.check_records import read_records
from logitstore.common.exit_status import ExitStatus
from logitstore.common.options import above_zero, add_storage_options, positive, read_storage_options
from logitstore.records import Segment
from logitstore.store import LogitStore

DESCRIPTION = """\
Keep the responses of a store that a program of yours finds right.

The program reads a JSON object a line, with id, sample, prompt, reasoning, answer, finish_reason and record,
and answers each with a line, flushed: {"id": ..., "sample": ..., "keep": true, "score": 1.0}, with the id and
the sample that it was asked about. After any other line it is ended, and a new one is asked once more. A
response without a verdict in time is dropped. Of each problem the best ones are kept, in a store of their
own. OUT.checks.jsonl has every verdict, OUT.check.json the counts. A command that was stopped goes on when it
is given again with the same program and records; the files that --program names count by their content, what
these import does not.
"""
EXAMPLES = """\
examples:
  penumbra label check build/traces --out build/right --program 'python3 check.py' --records problems.jsonl
  penumbra label check build/traces --out build/best-of-4 --program ./grade --best 2 --timeout-sec 5
"""


def add_check(commands: Any, epilog: str) -> None:
    """Add the subcommand to those of `penumbra label`."""
    parser = commands.add_parser(
        "check",
        help="keep the responses of a store that a program of yours finds right",
        description=DESCRIPTION,
        epilog=f"{EXAMPLES}\n{epilog}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", help="store with the responses, several of each problem say")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="store of those kept")
    parser.add_argument("--program", required=True, metavar="COMMAND", help="the program and its arguments")
    parser.add_argument(
        "--records", metavar="INPUT", help="records of all problems, for the program to see; found by id"
    )
    parser.add_argument(
        "--id", metavar="FIELD", help="field of their id, dots reach inside (default: as in the store's job)"
    )
    parser.add_argument(
        "--best", type=positive, default=1, metavar="N", help="kept of each problem (default: 1)"
    )
    parser.add_argument(
        "--timeout-sec", type=above_zero, default=30.0, metavar="SEC", help="longest wait for a verdict"
    )
    parser.add_argument("--quiet", action="store_true", help="show trouble only")
    add_storage_options(parser)
    parser.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> int:
    options = read_storage_options(arguments.storage_options)
    store = LogitStore.open(arguments.store, storage_options=options)
    records = read_records(arguments.records, arguments.id, store, options) if arguments.records else None
    settings = CheckSettings(arguments.program, arguments.best, arguments.timeout_sec)
    report = check_responses(store, arguments.out, settings, records)
    if not arguments.quiet:
        if report.num_restarts:
            print(
                f"the program was ended {report.num_restarts:,} times without a verdict, the last time "
                f"since: {report.last_trouble}",
                file=sys.stderr,
            )
        dropped = "; ".join(f"{count:,} {reason}" for reason, count in report.num_dropped.items())
        weights = " --set 'data.segments={reasoning = 0.3}'" if _has_reasoning(arguments.out) else ""
        print(
            f"{report.num_read:,} responses to {report.num_problems:,} problems checked, {report.num_kept:,} "
            f"kept, dropped: {dropped or 'none'}; {report.num_unsolved:,} problems "
            f"without a right one\nkept: {arguments.out}\nnext: penumbra train run --student MODEL --labels "
            f"{arguments.out} --out FOLDER{weights}"
        )
    return ExitStatus.DONE


def _has_reasoning(folder: Path) -> bool:
    """Whether a student can be told to learn the reasoning apart: the store says which tokens are it."""
    store = LogitStore.open(folder)
    for entry in store.shards():
        if entry.name:
            with store.open_shard(entry) as reader:
                for block in range(reader.num_blocks):
                    known = (one for one in reader.segments(block) if one is not None)
                    if any(Segment.REASONING in segments_T for segments_T in known):
                        return True
    return False
