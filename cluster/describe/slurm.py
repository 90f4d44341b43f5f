"""A Slurm batch script: Ray on the allocation's nodes, the job on it, resumed by submitting again. Pure."""

from __future__ import annotations

import re
import shlex

from cluster.describe.config import ClusterConfig
from logitstore.common.config_file import ConfigError

PORT = 6379
WARNING_MARGIN_SEC = 60
"""Slurm warns this long before the end of the time limit, beyond `workers.drain_sec`."""


def script(cluster: ClusterConfig, job_file: str, drain_sec: float) -> str:
    """The script for `sbatch`. The first node is also Ray's head; `drain_sec` is the job's.

    Raises:
        ConfigError: several groups; one allocation has machines of one kind.
    """
    group, *others = cluster.groups
    if others:
        raise ConfigError(
            f"{len(cluster.groups)} groups, but a Slurm job is rendered for machines of one kind; describe "
            "each kind as a cluster of its own and submit the same job file to each, one after the other"
        )
    slurm = cluster.slurm
    inside = ""
    if slurm.container:
        if not cluster.image:
            raise ConfigError("slurm.container needs an image; set image, or leave the container out")
        image = cluster.image if "://" in cluster.image or cluster.image.endswith(".sif") else None
        inside = f"apptainer exec --nv {shlex.quote(image or f'docker://{cluster.image}')} "
    python = f"{inside}{shlex.quote(cluster.python)}"
    node = (
        f"--num-cpus={group.cores} --num-gpus={group.gpus} --resources='{{\"group-{group.name}\": 1}}' "
        "--disable-usage-stats --block"
    )
    parts = {
        "directives": "\n".join(f"#SBATCH {line}" for line in _directives(cluster, drain_sec)),
        "setup": slurm.setup or ":  # slurm.setup is empty",
        "ray": f"{python} -m ray.scripts.scripts",
        "addresses": _ADDRESSES if not slurm.interface else f"ip -4 -o addr show dev {slurm.interface}",
        "scratch": slurm.scratch.rstrip("/"),
        "node": node,
        "python": python,
        "job": shlex.quote(job_file),
        "port": PORT,
    }
    return _SCRIPT.format(**parts)


def _directives(cluster: ClusterConfig, drain_sec: float) -> list[str]:
    """What sbatch is told; lines of `slurm.directives` replace ours of the same name."""
    group, slurm = cluster.groups[0], cluster.slurm
    minutes = int(slurm.hours * 60)
    lines = [
        f"--job-name={cluster.name}",
        f"--nodes={group.count}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={group.cores}",
        f"--mem={group.memory_gb}G",
        f"--time={minutes // 60:02d}:{minutes % 60:02d}:00",
        f"--signal=B:TERM@{int(drain_sec) + WARNING_MARGIN_SEC}",
        "--requeue",
        "--output=%x-%j.log",
        "--open-mode=append",
    ]
    if group.gpus:
        gpu_type = slurm.gpu_types.get(group.accelerator)
        lines.append(f"--gpus-per-node={f'{gpu_type}:' if gpu_type else ''}{group.gpus}")
    if slurm.partition:
        lines.append(f"--partition={slurm.partition}")
    if slurm.account:
        lines.append(f"--account={slurm.account}")
    named = {re.split(r"[=\s]", line)[0] for line in slurm.directives}
    return [line for line in lines if line.partition("=")[0] not in named] + list(slurm.directives)


_ADDRESSES = "bash -c 'hostname --ip-address; hostname --all-ip-addresses'"


_SCRIPT = """\
#!/bin/bash
{directives}
set -euo pipefail
export RAY_USAGE_STATS_ENABLED=0
# Since Slurm 22.05 steps no longer take over the job's cores per task by themselves.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# Ray listens on the nodes' network: only this job's own steps have the token.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
export RAY_AUTH_TOKEN
# A folder of this user and job: one that all users share belongs to whoever used the node first.
RAY_TMPDIR="{scratch}/ray-$(id -u)-$SLURM_JOB_ID"
export RAY_TMPDIR
{setup}

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk 'NR == 1')
# The first address that other nodes reach: Debian's /etc/hosts gives a machine's name a loopback one.
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" {addresses} | tr ' /' '\n\n' |
  awk '/^[0-9]+[.][0-9]+[.][0-9]+[.][0-9]+$/ && !/^127[.]/ && !found++')
if [ -z "$head_ip" ]; then
  echo "no IPv4 address that other nodes reach on $head_node; set slurm.interface" >&2
  exit 1
fi
# Several jobs may share a node, so the port follows from the job's number.
port=$(( {port} + SLURM_JOB_ID % 1000 ))
export RAY_ADDRESS="$head_ip:$port"

srun --nodes=1 --ntasks=1 --nodelist="$head_node" --overlap \\
  {ray} start --head --node-ip-address="$head_ip" --port="$port" --dashboard-host=127.0.0.1 \\
  {node} &
steps=($!)
answers=""
for _ in $(seq 60); do
  if {ray} status --address "$RAY_ADDRESS" >/dev/null 2>&1; then
    answers=yes
    break
  fi
  kill -0 "${{steps[0]}}" 2>/dev/null || break
  sleep 2
done
if [ -z "$answers" ]; then
  echo "Ray's head on $head_node has ended or does not answer; its messages are above" >&2
  exit 1
fi
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes=$(( SLURM_JOB_NUM_NODES - 1 )) --ntasks=$(( SLURM_JOB_NUM_NODES - 1 )) \\
    --exclude="$head_node" --overlap \\
    {ray} start --address="$RAY_ADDRESS" {node} &
  steps+=($!)
fi

# Slurm warns the batch script before the time is up; the labeler then finishes the units at work.
{python} -P -m labeler run {job} &
job=$!
trap 'kill -TERM "$job"' TERM
status=0
wait "$job" || status=$?
# A wait cut short by the trap says so by a status above 128; the job itself then still drains.
while kill -0 "$job" 2>/dev/null; do
  status=0
  wait "$job" || status=$?
done
kill "${{steps[@]}}" 2>/dev/null || true
wait "${{steps[@]}}" 2>/dev/null || true
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --overlap rm -rf "$RAY_TMPDIR" || true
# 4: the job was interrupted before its end; unless it was cancelled, ask Slurm for another turn, which goes
# on where it stopped.
if [ "$status" -eq 4 ] && [[ "$(scontrol show job "$SLURM_JOB_ID")" == *JobState=RUNNING* ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
