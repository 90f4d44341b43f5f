"""Whether a job's replicas fit a cluster: machines, cores, GPUs and the GPUs' memory. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cluster.describe.fit.cache import room_for_weights_gb
from cluster.describe.settings.accelerators import known_memory_gb, slice_gb
from cluster.describe.settings.cluster import ClusterConfig, GroupConfig, Kind
from labeler.config.loading import JobConfig, WorkersConfig
from labeler.planning.fit.disks import store_bytes_at_most
from labeler.planning.fit.gpu_memory import GB, MemoryNeed, memory_need, stored_weights
from logitstore.common.config_file import ConfigError


def check_placement(
    cluster: ClusterConfig, job: JobConfig, cores: Mapping[str, int], *, disk_kind: Kind | None = None
) -> list[str]:
    """How the job's replicas fit the cluster's groups, one line per group that takes some.

    A replica is on one machine, or on `workers.machines` different ones of a group at once, with the same
    share on each. A job picks a group by `workers.resources = {"group-NAME" = 0.001}`. `cores` says how many
    CPU cores a machine of each group offers to Ray; `disk_kind` what is rendered, for the disks.

    Raises:
        ConfigError: not a single group can hold a replica, or not all replicas fit, or a teacher not on the
            machines' disks.
    """
    workers = job.workers
    asked = _asked_group(cluster, workers)
    rooms: dict[str, int] = {}
    need = memory_need(job)
    too_small: dict[str, str] = {}
    lines = []
    for group in cluster.groups:
        each = shares_of_a_machine(group, workers, cores[group.name])
        if asked not in (None, group.name) or not each or group.count < workers.machines:
            continue
        memory_gb = gpu_memory_gb(group, _slice_gb(cluster, disk_kind))
        if need is not None and need.gpu_bytes > (memory_gb or math.inf) * GB:
            too_small[group.name] = f"a GPU of group {group.name} has {memory_gb:.3g} GB, but {need}"
            if need.is_sure:
                continue
        rooms[group.name] = each * group.count // workers.machines
        if workers.machines == 1:
            lines.append(f"group {group.name}: up to {each} on each of {group.count} machines")
        else:
            place = f"each on {workers.machines} of {group.count} machines at once"
            lines.append(f"group {group.name}: up to {rooms[group.name]}, {place}")
    if too_small and need is not None and need.is_sure:
        _refuse_small_gpus(too_small, list(rooms))
    if workers.machines > 1 and len(rooms) > 1:
        raise ConfigError(
            f"a replica on {workers.machines} machines could be given some of each of the groups "
            f"{', '.join(rooms)}; choose one: workers.resources = {{ group-{min(rooms)} = 0.001 }}"
        )
    if sum(rooms.values()) < workers.replicas:
        fits = "; ".join(lines) or "no group can hold one"
        place = "one machine" if workers.machines == 1 else f"each of {workers.machines} machines of a group"
        raise ConfigError(
            f"workers.replicas is {workers.replicas}, each with {workers.gpus:g} GPUs and {workers.cores} "
            f"cores on {place}, but the cluster has room for {sum(rooms.values())} ({fits}); raise a group's "
            "count or lower replicas"
        )
    lines += [f"WARNING: {why}" for why in too_small.values()] or _memory_lines(cluster, job, need)
    if disk_kind is not None:
        groups = [group for group in cluster.groups if group.name in rooms]
        lines += disk_lines(job, {one.name: room_for_weights_gb(cluster, one, disk_kind) for one in groups})
    return lines


def gpu_memory_gb(group: GroupConfig, part_gb: float | None = None) -> float | None:
    """Memory of one GPU of the group, or of the part of it that a pod gets; None for one that is not known
    here."""
    return group.gpu_memory_gb or part_gb or known_memory_gb(group.accelerator)


def _slice_gb(cluster: ClusterConfig, kind: Kind | None) -> float | None:
    is_kuberay = kind is not None and kind.startswith("kuberay")
    return slice_gb(cluster.kubernetes.gpu_resource) if is_kuberay else None


def disk_lines(job: JobConfig, room_gb: Mapping[str, float | None]) -> list[str]:
    """Warnings where the teacher's weights may not fit the disk of a group (by its name).

    Raises ConfigError where they are known not to.
    """
    weights = stored_weights(job)
    store = store_bytes_at_most(job)
    lines = [] if store is None else [f"the store takes at most about {store / GB:,.1f} GB"]
    if weights is None:
        return lines
    small = [
        (name, room) for name, room in room_gb.items() if room is not None and room * GB < weights.num_bytes
    ]
    if not small:
        return lines
    where = ", ".join(f"{max(0, room):g} GB on group {name}" for name, room in small)
    why = f"the teacher's weights are about {weights}, but the disks have room for {where}"
    if not weights.is_sure:
        return [*lines, f"WARNING: {why}"]
    raise ConfigError(f"{why}; raise disk_gb or cache.size_gb, or name another place in [cache]")


def _refuse_small_gpus(too_small: dict[str, str], others: list[str]) -> None:
    """Ray does not know the memory of GPUs: a group that a replica may be given must hold it."""
    why = "; ".join(too_small.values())
    remedy = (
        f"keep the job off it: workers.resources = {{ group-{others[0]} = 0.001 }}, with as many "
        "workers.replicas as that group holds"
        if others
        else "raise teacher.tensor_parallel_size and workers.gpus, or describe GPUs that are larger"
    )
    raise ConfigError(f"{why}; {remedy}")


def _memory_lines(cluster: ClusterConfig, job: JobConfig, need: MemoryNeed | None) -> list[str]:
    """What the check of the memory went by, or could not."""
    if not job.workers.gpus or job.teacher.engine == "fake":
        return []
    if need is None:
        return [f"GPU memory is not checked: nothing here says how large {job.teacher.model!r} is"]
    unknown = [group.name for group in cluster.groups if group.gpus and gpu_memory_gb(group) is None]
    not_checked = f"; not checked for {', '.join(unknown)} (set gpu_memory_gb)" if unknown else ""
    return [f"{need}{not_checked}"]


def _asked_group(cluster: ClusterConfig, workers: WorkersConfig) -> str | None:
    """The group that a job picks; None where any will do."""
    asked = sorted(name.removeprefix("group-") for name in workers.resources if name.startswith("group-"))
    known = [group.name for group in cluster.groups]
    if len(asked) > 1 or not set(asked) <= set(known):
        raise ConfigError(
            f"workers.resources asks for {', '.join(asked)}, but a machine is in one group, of the groups "
            f"{', '.join(known)}; name one of them"
        )
    return asked[0] if asked else None


def shares_of_a_machine(group: GroupConfig, workers: WorkersConfig, cores: int) -> int:
    """How many replicas, or parts of replicas on several machines, fit on a machine of the group."""
    if group.gpus and not workers.gpus:
        return 0  # a GPU is not paid for to idle
    limits = [float(cores // workers.cores)]
    if workers.gpus:
        # A part of a GPU is of one: two GPUs hold two replicas of 0.6, not three.
        of_gpus = group.gpus / workers.gpus if workers.gpus >= 1 else group.gpus * int(1 / workers.gpus)
        limits.append(of_gpus)
    part = workers.resources.get(f"group-{group.name}")
    if part:
        limits.append(1 / part)
    return int(min(limits))
