"""Notices replicas that long find no room in the cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ray

from labeler.config.loading import WorkersConfig
from labeler.driver.actors.pool_events import ReplicasWait
from labeler.driver.actors.slots import Slot
from labeler.on_ray.head_watch import HeadWatch
from labeler.on_ray.room import lack_of_room

ROOM_PATIENCE_SEC = 30.0
"""A replica without room for so long is mentioned; and so often it is asked why."""


class RoomWatch:
    """Call `note` often."""

    def __init__(self, workers: WorkersConfig, head: HeadWatch, wait_sec: float | None = None) -> None:
        """`wait_sec` is the longest that a job waits, None without end."""
        self._workers = workers
        self._head = head
        self._wait_sec = math.inf if wait_sec is None else wait_sec
        self._next_look_sec = 0.0
        self.lack_of_room = ""
        """Why replicas have long found no room in the cluster; "" where all have some."""

    def note(self, slots: Sequence[Slot], now_sec: float) -> list[ReplicasWait]:
        """Tells of replicas that have long found no room, and again where the reason has become another."""
        placing = [slot for slot in slots if slot.state == "placing"]
        if not placing:
            self.lack_of_room, self._next_look_sec = "", 0.0
        longest_sec = max((now_sec - slot.since_sec for slot in placing), default=0.0)
        patience_sec = min(ROOM_PATIENCE_SEC, self._wait_sec)
        if not placing or longest_sec < patience_sec or now_sec < self._next_look_sec:
            return []
        if not self._head.answers():
            return []
        self._next_look_sec = now_sec + ROOM_PATIENCE_SEC
        reason = lack_of_room(self._workers, len(placing), ray.nodes())
        if reason == self.lack_of_room:
            return []
        self.lack_of_room = reason
        return [ReplicasWait(reason)]


def waited_sec(slots: Sequence[Slot], now_sec: float) -> float:
    """For how long replicas have waited for room while none has any; 0 where one has."""
    if any(slot.state in ("loading", "ready", "leaving") for slot in slots):
        return 0.0
    return max((now_sec - slot.since_sec for slot in slots if slot.state == "placing"), default=0.0)
