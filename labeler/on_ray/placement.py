"""What a replica asks of Ray: room on one machine, or a placement group that holds several for it.

A group has one bundle per machine, each on a machine of its own. The worker's actor sits in the first one;
where the engine needs the others it starts its own actors in them (`vllm_machines.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from labeler.config.loading import WorkersConfig
from labeler.config.settings import MOST_LEASES


def reserve(workers: WorkersConfig) -> PlacementGroup | None:
    """A group for one replica, which Ray fills as soon as there is room; None where one machine will do."""
    if workers.machines == 1:
        return None
    return placement_group([_room(workers)] * workers.machines, strategy="STRICT_SPREAD")


def release(group: PlacementGroup | None) -> None:
    """Give the machines back. Ends every actor that is still on them."""
    if group is not None:
        remove_placement_group(group)


def actor_options(workers: WorkersConfig, group: PlacementGroup | None) -> dict[str, Any]:
    """Ray's options of the worker's actor."""
    options = options_in_bundle(group, 0) if group is not None else _options(_room(workers), "SPREAD")
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


def lack_of_room(workers: WorkersConfig, num_waiting: int, nodes: Sequence[Mapping[str, Any]]) -> str:
    """Why replicas wait, given the cluster's nodes as `ray.nodes()` has them, and what to do."""
    room = _room(workers)
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    large = sum(all(node.get(name, 0) >= amount for name, amount in room.items()) for node in alive)
    each = ", ".join(f"{amount:g} {name}" for name, amount in room.items())
    if large >= workers.machines:
        remedy = "they are in use: wait for them, add machines, or lower workers.replicas"
    else:
        remedy = "add such machines, or ask for less in [workers] (machines, gpus, cores, resources)"
    return (
        f"{num_waiting} of {workers.replicas} replicas wait for room: each takes {workers.machines} "
        f"{'machine' if workers.machines == 1 else 'machines'} with {each}, and {large} of the cluster's "
        f"{len(alive)} are that large; {remedy}"
    )


def _room(workers: WorkersConfig) -> dict[str, float]:
    """What a replica takes of each of its machines."""
    gpus = {"GPU": workers.gpus} if workers.gpus else {}
    return {"CPU": float(workers.cores), **gpus, **workers.resources}


def _options(room: Mapping[str, float], strategy: Any) -> dict[str, Any]:
    others = {name: amount for name, amount in room.items() if name not in ("CPU", "GPU")}
    return {
        "num_cpus": room["CPU"],  # Ray sets OMP_NUM_THREADS to it.
        "num_gpus": room.get("GPU", 0),
        "resources": others,
        "scheduling_strategy": strategy,
    }
