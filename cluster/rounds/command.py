"""`penumbra cluster rounds`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from cluster.rounds.config import load_rounds
from cluster.rounds.running import last_student, rejected_answers, report_rows, run_rounds, support_rows


def run(args: argparse.Namespace) -> int:
    """Run the rounds, or go on with them, and print the report."""
    file, documents = load_rounds(args.rounds)

    def say(text: str) -> None:
        if not args.quiet:
            print(f"rounds: {text}", file=sys.stderr)

    ledger = run_rounds(file, documents, say=say)
    student = last_student(ledger, documents)
    if args.json:
        print(json.dumps({**dataclasses.asdict(ledger), "student": student}))
        return 0
    heads = ("KL, own text", "KL, teacher's", "shared, own", "shared, teacher's", "mass outside K")
    print(f"{'':14}{''.join(f'{head:>19}' for head in heads)}")
    for row in report_rows(ledger):
        cells = (row.own_kl, row.teacher_kl, row.own_shared, row.teacher_shared, row.outside)
        print(f"{row.name:14}{''.join(_figure(cell, 19) for cell in cells)}")
    for one in rejected_answers(ledger):
        print(one.text(file.rounds.folder))
    print(f"{'mass outside K':>14}{'own text':>14}{'teacher':>14}")
    for k, own, teacher in support_rows(ledger):
        print(f"{k:14}{_figure(own, 14)}{_figure(teacher, 14)}")
    print(f"ended: {ledger.ended}; the last student is in {student}")
    return 0


def _figure(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.4f}':>{width}}"
