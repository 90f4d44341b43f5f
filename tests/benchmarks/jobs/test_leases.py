"""The worker that `bench leases` plays, beside the one that jobs have."""

from __future__ import annotations

import inspect
from typing import Any

from benchmarks.jobs.leases import SharedActors, StandIn
from labeler.worker.actor import Worker


def methods(of: type[Any]) -> dict[str, list[str]]:
    """The public methods of a class, with the names of what each takes."""
    return {
        name: list(inspect.signature(function).parameters)
        for name, function in vars(of).items()
        if not name.startswith("_") and callable(function)
    }


def test_the_stand_in_has_what_the_pool_asks_a_worker_for() -> None:
    """The measurement had ended as a defect since workers are told the marks of segments by name."""
    assert methods(StandIn) == methods(Worker)
    named = dict.fromkeys(inspect.signature(Worker).parameters)
    actors = SharedActors(["first", "second"])
    assert [actors.options(num_cpus=1).remote(**named) for _ in range(3)] == ["second", "first", "second"]
