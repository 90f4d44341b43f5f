"""Replicas on nodes that have a spot notice or are scaled down, in whatever state they are."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labeler.config.loading import load_job
from labeler.driver.actors import pool as pool_module
from labeler.driver.actors.pool import ActorPool
from labeler.driver.actors.pool_events import WorkerLeft
from labeler.driver.actors.slots import SlotState
from labeler.teacher.response_ends import ResponseEnds
from tests.labeler.jobs import overrides_for


class _Actor:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *_: self.asked.append(name))


def pool_of_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ActorPool, list[object]]:
    """A pool without Ray, and the actors that it kills."""
    killed: list[object] = []
    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    monkeypatch.setattr(
        pool_module, "ray", SimpleNamespace(get_runtime_context=lambda: context, kill=killed.append)
    )
    monkeypatch.setattr("labeler.on_ray.head_watch.HeadWatch.answers", lambda head: True)
    job = load_job(None, overrides_for(folder, "workers.replicas=2", "workers.address='127.0.0.1:1'"), {})
    pool = ActorPool(job, ResponseEnds(), _Actor)
    return pool, killed


@pytest.mark.parametrize(
    ("state", "after", "left"),
    [("ready", "leaving", False), ("loading", "empty", True), ("leaving", "leaving", False)],
)
def test_an_engine_that_still_loads_goes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: SlotState, after: SlotState, left: bool
) -> None:
    """It took minutes to load, and was then asked to leave, or went with its node in between."""
    pool, killed = pool_of_two(tmp_path, monkeypatch)
    monkeypatch.setattr(pool._nodes, "about_to_go", lambda: {"going"})
    actors = [_Actor(), _Actor()]
    for slot, actor, node in zip(pool._slots, actors, ("going", "staying"), strict=True):
        slot.state, slot.handle, slot.node_ids, slot.node_name = state, actor, (node,), f"node {node}"
    events = pool._leave_nodes_about_to_go(100.0)
    gone, kept = pool._slots
    assert (gone.state, kept.state) == (after, state)
    assert events == ([WorkerLeft("worker-0.0", "node going")] if left else [])
    assert killed == ([actors[0]] if left else [])
    assert actors[0].asked == (["leave"] if state == "ready" else [])
    assert gone.deaths_in_row == 0, "no fault of the engine"
    assert pool._leave_nodes_about_to_go(101.0) == [], "the cluster is not asked at each look"


def test_the_time_of_an_engine_that_never_gets_ready_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its devices are taken from its place on; a load that fails again and again was free of charge."""
    pool, _ = pool_of_two(tmp_path, monkeypatch)
    first = pool._slots[0]
    now = time.monotonic()
    for slot in pool._slots:
        slot.state, slot.handle, slot.held_since_sec = "loading", _Actor(), now - 100.0
    assert pool.held_sec == pytest.approx(200.0, abs=5.0), "while they load"
    pool._lost(first, "CUDA out of memory", "engine")
    assert first.held_since_sec is None
    assert pool.held_sec == pytest.approx(200.0, abs=5.0), "and once one is gone"
    first.state, first.handle = "placing", _Actor()
    pool._lost(first, "no room", "elsewhere")
    assert pool.held_sec == pytest.approx(200.0, abs=5.0), "it held none"
