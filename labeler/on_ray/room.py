"""What a replica takes of a machine, and why replicas wait for it. Without Ray: `submit` knows it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from labeler.config.loading import WorkersConfig

MOST_KINDS = 5
"""Kinds of nodes that are told of."""
HIDDEN = ("node:", "object_store_memory")


def lack_of_room(workers: WorkersConfig, num_waiting: int, nodes: Sequence[Mapping[str, Any]]) -> str:
    """Why replicas wait, given the cluster's nodes as `ray.nodes()` has them, and what to do."""
    room = room_of(workers)
    large, num_alive = _count_large(workers, nodes)
    each = ", ".join(f"{amount:g} {name}" for name, amount in room.items())
    if large >= workers.machines:
        remedy = "they are in use: wait for them, add machines, or lower workers.replicas"
    else:
        remedy = "add such machines, or ask for less in [workers] (machines, gpus, cores, resources)"
    return (
        f"{num_waiting} of {workers.replicas} replicas wait for room: each takes {workers.machines} "
        f"{'machine' if workers.machines == 1 else 'machines'} with {each}, and {large} of the cluster's "
        f"{num_alive} are that large; {remedy}"
    )


def nodes_with_room(
    workers: WorkersConfig, nodes: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], int]:
    """Nodes that a replica, or its part, may be placed on, and the number of the others that are alive."""
    alive = [node for node in nodes if node["Alive"]]
    large = [node for node in alive if _is_large(room_of(workers), node["Resources"])]
    return large, len(alive) - len(large)


def fits(workers: WorkersConfig, nodes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the cluster, with nothing else on it, has the machines for one replica."""
    return _count_large(workers, nodes)[0] >= workers.machines


def lack_of_gpus(workers: WorkersConfig, nodes: Sequence[Mapping[str, Any]]) -> str:
    """Why a replica's GPUs are nowhere, with what the nodes have; "" where there are as many as it takes."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    enough = sum(node.get("GPU", 0) >= workers.gpus for node in alive)
    if not workers.gpus or enough >= workers.machines:
        return ""
    wanted = f"workers.gpus = {workers.gpus:g}" + (
        f" on each of workers.machines = {workers.machines}" if workers.machines > 1 else ""
    )
    kinds = Counter(_in_words(node) for node in alive)
    there = "; ".join(f"{count} with {kind}" for kind, count in kinds.most_common(MOST_KINDS)) or "none"
    return f"{wanted}, but {enough or 'none'} of {len(alive)} nodes have that ({there})"


def _in_words(resources: Mapping[str, float]) -> str:
    """What a node has, but for what Ray names after the node itself."""
    named = {name: amount for name, amount in resources.items() if not name.startswith(HIDDEN)}
    return ", ".join(
        f"{amount / 1e9:.1f} GB {name}" if name.endswith("memory") else f"{amount:g} {name}"
        for name, amount in sorted({"GPU": 0.0, **named}.items())
    )


def _count_large(workers: WorkersConfig, nodes: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Machines that a replica, or its part, fits on; and all that are alive."""
    large, num_others = nodes_with_room(workers, nodes)
    return len(large), len(large) + num_others


def _is_large(room: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0) >= part for name, part in room.items())


def room_of(workers: WorkersConfig) -> dict[str, float]:
    """What a replica takes of each of its machines."""
    gpus = {"GPU": workers.gpus} if workers.gpus else {}
    return {"CPU": float(workers.cores), **gpus, **workers.resources}
