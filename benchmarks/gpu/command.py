"""Everything that was measured on a GPU once, again, beside what it took then. Needs a CUDA device.

One command makes the whole table: the capture's kernels, the heads, the losses, and the rates of engines.
Compare figures within one run. The result names the card and the driver; the page of results has a section of
it once it lies in `benchmarks/results`.

A machine may be lent for minutes, in calls that are shorter than the whole. Each section is printed and saved
as soon as it is measured, and one that fails is named and left out. The same command again keeps what the
folder `--out` has and measures what is missing or has failed lines; where card, versions, our code or the
choices differ, it measures anew and says why. Each section has a time that it should not exceed: with
`--limit` none is begun that would not fit. `--rehearse` runs all of it at small sizes, without a GPU under
Triton's interpreter and with vLLM's CPU engine, before such a machine is had.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.gpu import losses
from benchmarks.gpu.earlier import beside_earlier
from benchmarks.gpu.kept import Measured, build_result, conditions, read_kept
from benchmarks.gpu.kernels import in_words, taken
from benchmarks.gpu.sections import FULL, PARTS, REHEARSAL, Part, Section, sections
from benchmarks.report.devices import need_gpu
from benchmarks.report.results import save, show_table
from logitstore.common.options import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--top-k", type=positive, nargs="+", default=[16, 64, 128], help="K (default 16 64 128)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of the JSON")
    parser.add_argument(
        "--parts",
        type=parse_parts,
        default=PARTS,
        metavar="A,B,...",
        help=f"only these of {', '.join(PARTS)}; {_times()}",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="SECONDS",
        help="begin no section that would not end within these; the command given again takes those left",
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="run every section at small sizes, on a CPU too; save nothing"
    )


def parse_parts(text: str) -> tuple[Part, ...]:
    """ "loss,head" -> ("loss", "head")."""
    words = text.split(",")
    unknown = [word for word in words if word not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in words)


def _times() -> str:
    """How long the parts may take, for the help."""
    found = sections(FULL, [64], "cuda")
    seconds = {part: sum(one.budget_sec for one in found if one.part == part) for part in PARTS}
    words = ", ".join(f"{part} {sec}" for part, sec in seconds.items())
    return f"seconds they may take: {words}, together {sum(seconds.values())}"


def run(args: argparse.Namespace) -> int:
    if not args.rehearse:
        need_gpu()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        return _interpreted(args)
    begun = time.monotonic()
    device = "cuda" if has_gpu else "cpu"
    sizes = REHEARSAL if args.rehearse else FULL
    here = conditions()
    every = sections(sizes, args.top_k, device)
    kept, why_not = ({}, None) if args.rehearse else read_kept(args.out, here)
    if why_not is not None:
        print(f"Nothing is kept: {why_not}.")
    table = Tables(every, kept, [*losses.missing(), *taken(device, sizes.vocab_size)])
    asked_for = [section for section in every if section.part in args.parts]
    missing = [section for section in asked_for if not table.has(section)]
    _say_plan(asked_for, missing)
    out = None if args.rehearse else args.out
    end = None if args.limit is None else begun + args.limit
    left = _measure(missing, table, here, out, end)
    for note in table.notes:
        print(f"  {note}")
    done = sum(map(table.has, asked_for))
    meaning = "; the figures of a rehearsal say only that it runs" if args.rehearse else ""
    print(
        f"{done} of {len(asked_for)} sections on {here['card']}, {len(left)} left for lack of time, "
        f"{len(asked_for) - done - len(left)} failed{meaning}"
    )
    if done < len(asked_for) and not args.rehearse:
        print("Give the same command again for those that are missing; the others are kept.")
    return int(done < len(asked_for))


class Tables:
    """What is measured so far, in the order of the sections, and what is to be said of it."""

    def __init__(self, every: Sequence[Section], kept: dict[str, Measured], notes: Sequence[str]) -> None:
        self._order = [section.title for section in every]
        self._measured = dict(kept)
        self.notes = list(notes)

    def has(self, section: Section) -> bool:
        """Whether every line of it was measured, with the same choices."""
        one = self._measured.get(section.title)
        return one is not None and one.is_whole and one.settings == section.settings

    def add(self, title: str, one: Measured) -> None:
        self._measured[title] = one

    @property
    def in_order(self) -> dict[str, Measured]:
        """Those that this version knows, then others."""
        titles = [*self._order, *(title for title in self._measured if title not in self._order)]
        return {title: self._measured[title] for title in titles if title in self._measured}


def _say_plan(asked_for: Sequence[Section], missing: Sequence[Section]) -> None:
    for section in asked_for:
        state = f"to measure, in at most {section.budget_sec} s" if section in missing else "kept"
        print(f"  {section.title}: {state}")


def _measure(
    missing: Sequence[Section], table: Tables, here: dict[str, str], out: Path | None, end: float | None
) -> list[Section]:
    """Measure and save one section after the other; those that there is no time for."""
    left = []
    for section in missing:
        started = time.monotonic()
        if end is not None and started + section.budget_sec > end:
            left.append(section)
            continue
        try:
            made = beside_earlier(section.measure())
        except Exception as error:  # noqa: BLE001  whatever it is, the other sections go on
            table.notes.append(f"{section.title}: not measured, {in_words(error)}.")
            continue
        seconds = time.monotonic() - started
        date = datetime.now(UTC).isoformat(timespec="seconds")
        table.add(section.title, Measured(made, section.settings, date, round(seconds, 1)))
        show_table(made)
        print(f"  {seconds:.0f} s of {section.budget_sec}")
        if out is not None:
            save(build_result(table.in_order, here, table.notes), out)
    if out is not None and table.in_order:
        save(build_result(table.in_order, here, table.notes), out)
    return left


def _interpreted(args: argparse.Namespace) -> int:
    """The same rehearsal where Triton interprets: it looks at the environment when it is imported."""
    options = ["--rehearse", "--top-k", *map(str, args.top_k), "--out", str(args.out)]
    options += ["--parts", ",".join(args.parts)]
    command = [sys.executable, "-P", "-m", "benchmarks", "gpu", *options]
    return subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}).returncode
