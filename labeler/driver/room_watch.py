"""Notices replicas that long find no room in the cluster."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from labeler.config.loading import WorkersConfig
from labeler.driver.pool_events import ReplicasWait
from labeler.driver.slots import Slot
from labeler.on_ray.head_watch import HeadWatch
from labeler.on_ray.room import lack_of_room

ROOM_PATIENCE_SEC = 30.0
"""A replica without room for so long is mentioned."""


class RoomWatch:
    """Call `note` often."""

    def __init__(self, workers: WorkersConfig, head: HeadWatch) -> None:
        self._workers = workers
        self._head = head
        self.lack_of_room = ""
        """Why replicas have long found no room in the cluster; "" where all have some."""

    def note(self, slots: Sequence[Slot], now_sec: float) -> list[ReplicasWait]:
        """Tells of replicas that have long found no room, once until all have had some again."""
        placing = [slot for slot in slots if slot.state == "placing"]
        if not placing:
            self.lack_of_room = ""
        longest_sec = max((now_sec - slot.since_sec for slot in placing), default=0.0)
        if self.lack_of_room or longest_sec < ROOM_PATIENCE_SEC or not self._head.answers():
            return []
        self.lack_of_room = lack_of_room(self._workers, len(placing), ray.nodes())
        return [ReplicasWait(self.lack_of_room)]


def waited_sec(slots: Sequence[Slot], now_sec: float) -> float:
    """For how long replicas have waited for room while none has any; 0 where one has."""
    if any(slot.state in ("loading", "ready", "leaving") for slot in slots):
        return 0.0
    return max((now_sec - slot.since_sec for slot in slots if slot.state == "placing"), default=0.0)
