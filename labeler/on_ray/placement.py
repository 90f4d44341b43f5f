"""What a replica asks of Ray: room on one machine, or a placement group that holds several for it.

A group has one bundle per machine, each on a machine of its own. The worker's actor sits in the first one;
where the engine needs the others it starts its own actors in them (`teacher/vllm/machines.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from labeler.config.loading import WorkersConfig
from labeler.config.run_settings import MOST_LEASES
from labeler.on_ray.room import room_of


def reserve(workers: WorkersConfig) -> PlacementGroup | None:
    """A group for one replica, which Ray fills as soon as there is room; None where one machine will do."""
    if workers.machines == 1:
        return None
    return placement_group([room_of(workers)] * workers.machines, strategy="STRICT_SPREAD")


def release(group: PlacementGroup | None) -> None:
    """Give the machines back. Ends every actor that is still on them."""
    if group is not None:
        remove_placement_group(group)


def actor_options(workers: WorkersConfig, group: PlacementGroup | None) -> dict[str, Any]:
    """Ray's options of the worker's actor."""
    options = options_in_bundle(group, 0) if group is not None else _options(room_of(workers), "SPREAD")
    return options | {
        "max_restarts": 0,
        "max_task_retries": 0,
        # One call per lease, and room for heartbeats beside them.
        "max_concurrency": (workers.leases or MOST_LEASES) + 4,
    }


def options_in_bundle(group: PlacementGroup, index: int) -> dict[str, Any]:
    """Ray's options of an actor that takes all of a bundle."""
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return _options(group.bundle_specs[index], strategy)


def other_nodes_of_replica() -> tuple[str, ...]:
    """In an actor: ids of the nodes that its group holds besides the actor's own."""
    group = ray.util.get_current_placement_group()
    if group is None:
        return ()
    nodes = ray.util.placement_group_table(group)["bundles_to_node_id"].values()
    return tuple(node for node in nodes if node != ray.get_runtime_context().get_node_id())


def _options(room: Mapping[str, float], strategy: Any) -> dict[str, Any]:
    others = {name: amount for name, amount in room.items() if name not in ("CPU", "GPU")}
    return {
        "num_cpus": room["CPU"],  # Ray sets OMP_NUM_THREADS to it.
        "num_gpus": room.get("GPU", 0),
        "resources": others,
        "scheduling_strategy": strategy,
    }
