"""Whether the machines of a cluster that is up can hold a job's teacher. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.describe.settings.accelerators import known_memory_gb
from cluster.errors import JobRefusedError
from labeler.config.loading import JobConfig
from labeler.on_ray.room import room_of
from labeler.planning.fit.gpu_memory import GB, memory_need, stored_weights

Node = Mapping[str, Any]
"""A node as the dashboard describes it."""
ACCELERATOR = "accelerator_type:"
"""Ray's own resource of a machine, named after its GPUs."""
MEGABYTE = 2**20


def check_machines(job: JobConfig, nodes: Sequence[Node]) -> list[str]:
    """Warnings where the teacher may not fit a machine that Ray may place a replica on.

    Machines that say nothing of their GPUs or disks are passed over, as are those that an autoscaler has yet
    to start. Raises JobRefusedError where a GPU is known to be too small.
    """
    room = room_of(job.workers)
    taken = [node for node in nodes if _holds(node, room)]
    lines = []
    need = memory_need(job)
    if need is not None:
        known = [(node, memory) for node in taken if (memory := _gpu_gb(node)) is not None]
        small = [(node, memory) for node, memory in known if memory * GB < need.gpu_bytes]
        if small:
            where = ", ".join(sorted({f"{_name(node)} ({memory:.0f} GB)" for node, memory in small}))
            large = [node for node, memory in known if memory * GB >= need.gpu_bytes]
            why = f"a replica may be placed on {where}, but {need}; {_remedy(large, [n for n, _ in small])}"
            if need.is_sure:
                raise JobRefusedError(why)
            lines.append(f"WARNING: {why}")
    weights = stored_weights(job)
    if weights is not None:
        free = [(_name(node), num_bytes) for node in taken if (num_bytes := _free(node)) is not None]
        full = sorted(name for name, num_bytes in free if num_bytes < weights.num_bytes)
        if full:
            lines.append(
                f"WARNING: the teacher's weights are about {weights}, more than the root disk of "
                f"{', '.join(full)} has free; that is well if they are there already, or HF_HOME is elsewhere"
            )
    return lines


def _holds(node: Node, room: Mapping[str, float]) -> bool:
    raylet = node["raylet"]
    total = raylet.get("resourcesTotal", {})
    return raylet.get("state") == "ALIVE" and all(total.get(name, 0) >= part for name, part in room.items())


def _gpu_gb(node: Node) -> float | None:
    """Memory of the smallest GPU: as the machine reports it, else by Ray's name of its kind."""
    sizes = [gpu["memoryTotal"] * MEGABYTE / GB for gpu in node.get("gpus") or [] if gpu.get("memoryTotal")]
    if sizes:
        return min(sizes)
    kinds = [name for name in node["raylet"]["resourcesTotal"] if name.startswith(ACCELERATOR)]
    return known_memory_gb(kinds[0].removeprefix(ACCELERATOR)) if kinds else None


def _free(node: Node) -> float | None:
    """Bytes free on the root disk; pods report a disk of one byte, which says nothing."""
    disk = (node.get("disk") or {}).get("/") or {}
    return disk.get("free") if disk.get("total", 0) > 1 else None


def _name(node: Node) -> str:
    return str(node.get("hostname") or node["raylet"].get("nodeManagerHostname") or "a machine")


def _remedy(large: Sequence[Node], small: Sequence[Node]) -> str:
    """A resource that only the machines with large GPUs have, else larger GPUs."""
    of_small = {name for node in small for name in node["raylet"]["resourcesTotal"]}
    picks = [set(node["raylet"]["resourcesTotal"]) - of_small for node in large]
    shared = sorted(name for name in set().union(*picks) if name.startswith(("group-", ACCELERATOR)))
    if shared:
        return f'choose machines that can hold it: workers.resources = {{ "{shared[0]}" = 0.001 }}'
    return "raise teacher.tensor_parallel_size and workers.gpus, or add machines with larger GPUs"
