"""What sbatch is told: our lines, and those of `slurm.directives` in their place. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from cluster.describe.settings.cluster import ClusterConfig
from cluster.describe.settings.slurm_lines import split_directive
from logitstore.common.config_file import ConfigError

SAME_MEANING: dict[str, tuple[str, ...]] = {
    "--mem-per-cpu": ("--mem",),
    "--mem-per-gpu": ("--mem",),
    "--gpus": ("--gpus-per-node",),
    "--gpus-per-task": ("--gpus-per-node",),
    "--cpus-per-gpu": ("--cpus-per-task",),
    "--tasks-per-node": ("--ntasks-per-node",),
    "--no-requeue": ("--requeue",),
}
"""By a directive of sbatch those of ours that it excludes, or that would say the same twice."""
WARNING_MARGIN_SEC = 60
"""Slurm warns this long before the end of the time limit, beyond `workers.drain_sec`."""


def turn_sec(cluster: ClusterConfig, drain_sec: float) -> int:
    """After so long Slurm may warn of the time limit: up to a minute earlier than it is told."""
    return max(0, _minutes(cluster) * 60 - _warned_sec(drain_sec) - 60)


def _minutes(cluster: ClusterConfig) -> int:
    return math.ceil(cluster.slurm.hours * 60)  # 0 is no limit at all


def _warned_sec(drain_sec: float) -> int:
    return int(drain_sec) + WARNING_MARGIN_SEC


def directives(cluster: ClusterConfig, drain_sec: float) -> list[str]:
    """What sbatch is told; lines of `slurm.directives` replace ours of the same name, or of the same meaning.

    Raises ConfigError where the warning before the end would come at once, or a line asks for other machines
    than the group's.
    """
    group, slurm = cluster.groups[0], cluster.slurm
    minutes, warned_sec = _minutes(cluster), _warned_sec(drain_sec)
    if minutes * 60 <= warned_sec:
        raise ConfigError(
            f"slurm.hours = {slurm.hours:g} is {minutes} min, and the job is told to finish {warned_sec} s "
            f"before the end (workers.drain_sec = {drain_sec:g} and {WARNING_MARGIN_SEC} s): no time is "
            "left; raise slurm.hours"
        )
    _check_amounts(cluster)
    lines = [
        f"--job-name={cluster.name}",
        f"--nodes={1 if slurm.array else group.count}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={group.cores}",
        f"--mem={group.memory_gb}G",
        f"--time={minutes // 60:02d}:{minutes % 60:02d}:00",
        f"--signal=B:TERM@{warned_sec}",
        "--requeue",
        f"--output=%x-{'%A_%a' if slurm.array else '%j'}.log",
        "--open-mode=append",
    ]
    if group.gpus:
        gpu_type = slurm.gpu_types.get(group.accelerator)
        lines.append(f"--gpus-per-node={f'{gpu_type}:' if gpu_type else ''}{group.gpus}")
    if slurm.array:  # never more at once than the group has machines
        lines.append(f"--array=0-{slurm.array - 1}%{group.count}")
    if cluster.cache.size_gb:
        lines.append(f"--tmp={cluster.cache.size_gb}G")
    if slurm.partition:
        lines.append(f"--partition={slurm.partition}")
    if slurm.account:
        lines.append(f"--account={slurm.account}")
    given = dict(map(split_directive, slurm.directives))
    named = set(given).union(*(SAME_MEANING.get(name, ()) for name in given))
    if _gpus_in(given.get("--gres", "")) is not None:
        named.add("--gpus-per-node")
    return [line for line in lines if line.partition("=")[0] not in named] + list(slurm.directives)


def _check_amounts(cluster: ClusterConfig) -> None:
    """Raises ConfigError where a line asks for other cores, GPUs or tasks than Ray is told of."""
    group, slurm = cluster.groups[0], cluster.slurm
    nodes = 1 if slurm.array else group.count
    each = (1, "cores: the script starts one Ray on each machine, with all of them")
    meant = {
        "--cpus-per-task": (group.cores, "cores"),
        "--cpus-per-gpu": (group.cores / group.gpus if group.gpus else 0, "cores"),
        "--gpus-per-node": (group.gpus, "gpus"),
        "--gpus-per-task": (group.gpus, "gpus"),
        "--gpus": (group.gpus * nodes, "gpus and count"),
        "--gres": (group.gpus, "gpus"),
        "--ntasks": (nodes, "count"),
        "--ntasks-per-node": each,
        "--tasks-per-node": each,
    }
    for line in slurm.directives:
        name, value = split_directive(line)
        asked = _gpus_in(value) if name == "--gres" else _sum_of(value.split(","))
        if name in meant and asked is not None and asked != meant[name][0]:
            raise ConfigError(
                f"slurm.directives: {line!r} asks for {asked:g}, but by the group {group.name} it is "
                f"{meant[name][0]:g}, which Ray and the checks go by; set the group's {meant[name][1]}"
            )


def _gpus_in(value: str) -> float | None:
    """GPUs of a list such as lscratch:100,gpu:a100:4; None where it names none."""
    parts = [part for part in value.split(",") if re.match(r"(gres/)?gpu\b", part)]
    numbers = [_last_number(part) for part in parts]
    return sum(1 if number is None else number for number in numbers) if numbers else None


def _sum_of(parts: Sequence[str]) -> float | None:
    """The sum over numbers and lists by kinds such as l4:2,t4:2; None where a part has none."""
    numbers = [number for part in parts if (number := _last_number(part)) is not None]
    return sum(numbers) if len(numbers) == len(parts) else None


def _last_number(value: str) -> float | None:
    found = re.search(r"(?:^|[:=])(\d+)(?:\(.*)?$", value)
    return float(found[1]) if found else None
