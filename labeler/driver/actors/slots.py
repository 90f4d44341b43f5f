"""The places of a job's replicas, and the calls of the actors in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ray.util.placement_group import PlacementGroup

from labeler.records import Heartbeat, Lease

SlotState = Literal["empty", "placing", "loading", "ready", "leaving", "given_up"]
"""empty -> placing -> loading -> ready -> leaving -> empty. An actor that dies in any state makes its slot
empty again, or given up where it died too often."""
CallKind = Literal["place", "probe", "start", "heartbeat", "label"]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an actor that has not been answered yet."""

    slot: Slot
    generation: int
    """The slot's generation at the call; when the answer comes, the slot may have another actor."""
    kind: CallKind
    lease_id: int = 0
    """The lease of a "label" call."""
    node_id: str = ""
    """The node of a "probe" call."""


@dataclass(slots=True)
class Slot:
    """The place of one replica, and the actor that is in it now."""

    index: int
    generation: int = 0
    state: SlotState = "empty"
    handle: Any = None
    group: PlacementGroup | None = None
    """What holds the replica's machines, where it has several."""
    node_ids: tuple[str, ...] = ()
    """Nodes of the replica's machines, the actor's first."""
    node_name: str = ""
    cores: str | None = None
    """Those that its engine is bound to."""
    since_sec: float = 0.0
    """When its state began."""
    held_since_sec: float | None = None
    """When its actor was placed, and with it the devices taken; None where it has none."""
    leave_by_sec: float = 0.0
    """When "leaving": what is not finished by then is given back."""
    not_before_sec: float = 0.0
    deaths_in_row: int = 0
    restarts: int = 0
    leases: dict[int, Lease] = field(default_factory=dict)
    heartbeat: Heartbeat | None = None
    next_heartbeat_sec: float = 0.0

    @property
    def worker_id(self) -> str:
        return f"worker-{self.index}.{self.generation}"

    def held_sec(self, now_sec: float) -> float:
        """For how long its actor has held devices."""
        return 0.0 if self.held_since_sec is None else now_sec - self.held_since_sec
