"""What lost requests, lost replies and second actors do to a store: random schedules, tried and survived.

Each schedule is a random order of operations by two actors over objects in memory, of which some requests and
replies are lost; afterwards the store must be readable and hold every unit whose commit was answered once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.report.results import Figure, Result, publish
from benchmarks.schedules.driver_schedules import NUM_DRIVERS, lease_schedule, status_schedule
from benchmarks.schedules.store_schedules import MIXES, HarmError, run_schedule
from logitstore.common.options import positive

SCHEDULES = {False: 100, True: 12}
"""Schedules of each kind, by --quick."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--schedules", type=positive, metavar="N", help="of each kind (default 100; --quick: 12)"
    )


def run(args: argparse.Namespace) -> int:
    count = args.schedules or SCHEDULES[args.quick]
    over_store = [_tried(what, run_one, count) for what, run_one in OVER_STORES.items()]
    over_drivers = [_tried(what, run_one, count) for what, run_one in OVER_DRIVERS.items()]
    found = [*over_store, *over_drivers]
    tried, survived = _sums(found)
    failures = [f"{one.what}, {failure}" for one in found for failure in one.failures]
    for failure in failures:
        print(f"schedules: {failure}", file=sys.stderr)
    result = Result.of(
        "schedules",
        meaning="Of {:,} random schedules of faults over a store, {:,} leave it readable and every unit "
        "whose commit was answered there once; of {:,} over drivers, {:,} end with the last one's lease and "
        "status.".format(*_sums(over_store), *_sums(over_drivers)),
        columns=(
            "schedules over",
            "tried",
            "survived",
            "unreadable or wrong",
            "lost",
            "twice",
            "faults in them",
        ),
        rows=[
            (one.what, one.tried, one.survived, one.unreadable, one.lost, one.twice, one.num_faults)
            for one in found
        ],
        figures=[
            Figure.of("tried", tried, ""),
            Figure.of("survived", survived, ""),
            Figure.of("faults", sum(one.num_faults for one in found), ""),
        ],
        plots=[],
        notes=[
            "A schedule has 40 operations by one actor, while a second one acts in between; 15% of their "
            "changes and 45% of the replacements of an object lose the request or the reply, or are tried "
            "again by the client after a lost reply. Lost: a unit whose commit was answered is gone.",
            f"Schedules of lease and status have {NUM_DRIVERS} drivers, each suspended when the next begins.",
            "A schedule follows from its kind and its seed, 0 to one less than tried. The times of recovery "
            "are in the section on faults.",
        ],
        quick=args.quick,
        details={"failures": failures},
    )
    publish(result, args.out, quiet=args.quiet)
    return int(survived < tried)


@dataclass(slots=True)
class Tried:
    """What became of the schedules of one kind."""

    what: str
    tried: int = 0
    num_faults: int = 0
    """Requests and replies lost in the schedules that were survived."""
    unreadable: int = 0
    """The store cannot be read, or something of it is not as it must be."""
    lost: int = 0
    twice: int = 0
    failures: list[str] = field(default_factory=list)
    """Seed and error of each schedule that was not survived."""

    @property
    def survived(self) -> int:
        return self.tried - self.unreadable - self.lost - self.twice


OVER_STORES: dict[str, Callable[[int], int]] = {f"store, {mix}": partial(run_schedule, mix) for mix in MIXES}
OVER_DRIVERS: dict[str, Callable[[int], int]] = {
    "driver lease": lease_schedule,
    "status of a job": status_schedule,
}


def _tried(what: str, run_one: Callable[[int], int], count: int) -> Tried:
    tried = Tried(what)
    for seed in range(count):
        tried.tried += 1
        try:
            tried.num_faults += run_one(seed)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the store is not sound
            tried.failures.append(f"seed {seed}: {type(error).__name__}: {error}")
            harm = error.harm if isinstance(error, HarmError) else ""
            tried.lost += harm == "lost"
            tried.twice += harm == "twice"
            tried.unreadable += not harm
    return tried


def _sums(found: Sequence[Tried]) -> tuple[int, int]:
    """Tried and survived."""
    return sum(one.tried for one in found), sum(one.survived for one in found)
