"""When a job says that its replicas find no room, and when that has become another reason."""

from __future__ import annotations

from typing import Any

import pytest

from labeler.config.loading import WorkersConfig
from labeler.driver.actors.room_watch import RoomWatch, waited_sec
from labeler.driver.actors.slots import Slot
from labeler.on_ray.head_watch import HeadWatch


class _Head(HeadWatch):
    def __init__(self) -> None:
        super().__init__("nowhere:1")
        self.is_there = True

    def answers(self) -> bool:
        return self.is_there


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.nodes", lambda: found)
    return found


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources}


def waiting() -> Slot:
    slot = Slot(0)
    slot.state, slot.since_sec = "placing", 100.0
    return slot


def test_what_has_changed_since_is_told_again(nodes: list[dict[str, Any]]) -> None:
    """Else the status would ask for machines that somebody has added long ago."""
    nodes[:] = [node(CPU=4)]
    slot, watch = waiting(), RoomWatch(WorkersConfig(gpus=1), _Head())
    assert watch.note([slot], 129.9) == []
    (told,) = watch.note([slot], 130.0)
    assert "add such machines" in told.reason
    nodes.append(node(CPU=4, GPU=1))
    assert watch.note([slot], 131.0) == [], "nodes are not asked for at each look"
    (told,) = watch.note([slot], 160.0)
    assert told.reason == watch.lack_of_room
    assert "they are in use: wait for them" in told.reason
    assert watch.note([slot], 200.0) == [], "the same is said once"
    slot.state = "loading"
    assert watch.note([slot], 201.0) == []
    assert watch.lack_of_room == ""


def test_a_short_limit_is_not_waited_beyond(nodes: list[dict[str, Any]]) -> None:
    """limits.wait_sec = 5 ended a job after the 30 seconds in which nothing is said yet."""
    nodes[:] = [node(CPU=4)]
    slot, watch = waiting(), RoomWatch(WorkersConfig(gpus=1), _Head(), wait_sec=5)
    assert watch.note([slot], 104.9) == []
    assert watch.note([slot], 105.0)
    assert watch.lack_of_room
    assert waited_sec([slot], 105.1) > 5
    silent = _Head()
    silent.is_there = False
    assert RoomWatch(WorkersConfig(gpus=1), silent, wait_sec=0).note([slot], 500.0) == []
