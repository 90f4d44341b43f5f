"""A Slurm batch script: Ray on the allocation's nodes, the job on it, resumed by submitting again. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from cluster.describe.fit.placement import shares_of_a_machine
from cluster.describe.settings.cluster import ClusterConfig
from cluster.describe.settings.node_paths import checks_of, in_quotes
from cluster.describe.shell_words import path_word
from cluster.describe.slurm.container import ON_ALL_NODES, container_of
from cluster.describe.slurm.directives import directives, turn_sec
from cluster.jobs.submission import refuse_secrets
from labeler.config.loading import JobConfig, WorkersConfig
from logitstore.common.config_file import ConfigError, apply_override
from logitstore.common.secrets import redacted

PORT = 6379
MOST_VAIN_RESTARTS = 2
"""A job that was queued again so often, and whose time is used up by Ray's start, is given up."""
LONGEST_FOLDER = 107 - len("/ray/session_2026-11-29_14-27-07_123456_1234567/sockets/plasma_store")
"""Bytes of the folder in which Ray makes its sockets, whose names have at most 107."""


def script(
    cluster: ClusterConfig, job_file: str, job: JobConfig | None, overrides: Sequence[str] = ()
) -> str:
    """The script for `sbatch`. The first node is also Ray's head.

    `job` is what `job_file` and `overrides` say, which the script gives on to the labeler; with
    `slurm.array` each task takes its part of the input and its own store.

    Raises:
        ConfigError: several groups, as one allocation has machines of one kind; a container without an
            image; an array without a job.
        JobRefusedError: a secret in `overrides`.
    """
    group, *others = cluster.groups
    if others:
        raise ConfigError(
            f"{len(cluster.groups)} groups, but a Slurm job is rendered for machines of one kind; describe "
            "each kind as a cluster of its own and submit the same job file to each, one after the other"
        )
    slurm = cluster.slurm
    drain_sec = (job.workers if job else WorkersConfig()).drain_sec
    inside = container_of(cluster)
    python = f"{inside.prefix}{path_word(cluster.python)}"
    node = (
        f"--num-cpus={group.cores} --num-gpus={group.gpus} --resources='{{\"group-{group.name}\": 1}}' "
        "--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=$(( port + 2000 )) "
        "--disable-usage-stats --block"
    )
    labeler = f"{python} -P -m labeler run {_arguments(job_file, overrides)}{_task(cluster, job)}"
    parts = {
        "directives": "\n".join(f"#SBATCH {line}" for line in directives(cluster, drain_sec)),
        "setup": _setup(cluster),
        "scratch_is_set": checks_of([slurm.scratch], "slurm.scratch"),
        "ray": f"{python} -P -m ray.scripts.scripts",
        "addresses": _ADDRESSES if not slurm.interface else f"ip -4 -o addr show dev {slurm.interface}",
        "scratch": in_quotes(slurm.scratch.rstrip("/")),
        "longest": LONGEST_FOLDER,
        "node": node,
        "cores": group.cores,
        "turn_sec": turn_sec(cluster, drain_sec),
        "most_restarts": MOST_VAIN_RESTARTS,
        "port": PORT,
        "all_nodes": ON_ALL_NODES,
        "cache": _cache(cluster),
        "prepare": inside.prepare,
        "step": inside.step,
        "here": inside.here,
        "note": inside.note,
        "labeler": inside.driver(labeler),
        "terminate": inside.terminate,
        "clean": inside.clean,
    }
    return _SCRIPT.format(**parts)


def _arguments(job_file: str, overrides: Sequence[str]) -> str:
    """The job's file and changed settings. Raises JobRefusedError for a secret, which Slurm keeps with the
    script, and every user of the node sees in its list of processes; in the file it stays where it is."""
    changed: dict[str, Any] = {}
    for one in overrides:
        apply_override(changed, one)
    refuse_secrets(redacted(changed))
    return " ".join([shlex.quote(job_file), *(f"--set {shlex.quote(one)}" for one in overrides)])


def _setup(cluster: ClusterConfig) -> str:
    """The site's own lines, and checks of the variables that paths name."""
    own = cluster.slurm.setup or ":  # slurm.setup is empty"
    cache = checks_of([cluster.cache.host_path], "cache.host_path")
    return "\n".join([own, cache, checks_of(cluster.slurm.mounts, "slurm.mounts")]).rstrip()


def part_store(uri: str, number: int | str) -> str:
    """Where the task `number` of an array labels its part of the input."""
    return f"{uri.rstrip('/')}-part-{number}"


def merge_command(cluster: ClusterConfig, job: JobConfig) -> str:
    """What joins the stores of an array's tasks, as it is typed."""
    uri = job.output.uri.rstrip("/")
    numbers = f"{{0..{cluster.slurm.array - 1}}}" if cluster.slurm.array > 1 else "0"
    return f"penumbra store merge {shlex.quote(part_store(uri, ''))}{numbers} --out {shlex.quote(uri)}"


def task_of_array(cluster: ClusterConfig, job: JobConfig) -> tuple[ClusterConfig, JobConfig]:
    """One task's machine and job: as many of the job's replicas as one machine holds.

    Raises ConfigError for a job that cannot be cut so.
    """
    group, workers = cluster.groups[0], job.workers
    if workers.machines > 1:
        raise ConfigError(
            f"workers.machines is {workers.machines}, but a task of slurm.array has one machine; set "
            "slurm.array = 0"
        )
    if job.input.slice:
        raise ConfigError(
            f"input.slice is {job.input.slice!r}, but slurm.array = {cluster.slurm.array} gives each task "
            "one; remove one of the two"
        )
    limit = job.input.limit
    if limit is not None and limit < cluster.slurm.array:
        raise ConfigError(
            f"slurm.array = {cluster.slurm.array} parts for input.limit = {limit} records: some would have "
            "none and make no store; lower slurm.array"
        )
    each = max(1, shares_of_a_machine(group, workers, group.cores))
    replicas = min(workers.replicas, each)
    one = group.model_copy(update={"count": 1, "min_count": 0})
    return (
        cluster.model_copy(update={"groups": (one,)}),
        job.model_copy(update={"workers": workers.model_copy(update={"replicas": replicas})}),
    )


def _task(cluster: ClusterConfig, job: JobConfig | None) -> str:
    """What the labeler of an array's task is told besides the job file."""
    count = cluster.slurm.array
    if not count:
        return ""
    if job is None:
        raise ConfigError(
            f"slurm.array = {count} gives each task a store named like the job's; name the job file with "
            "--job"
        )
    _, task = task_of_array(cluster, job)
    store = shlex.quote(f"output.uri={part_store(job.output.uri, '')}")
    return (
        f' --set input.slice="$SLURM_ARRAY_TASK_ID/{count}" --set {store}"$SLURM_ARRAY_TASK_ID"'
        f" --set workers.replicas={task.workers.replicas}"
    )


def _cache(cluster: ClusterConfig) -> str:
    """Where the weights are kept on each node: fetched once, and read from there by all processes."""
    cache = cluster.cache
    if cache.host_path:
        place = in_quotes(cache.host_path)
    elif cache.size_gb:
        place = "$RAY_TMPDIR/huggingface"
    else:
        return ":  # [cache] names no place on the nodes"
    exports = [f'export {name}="{value}"' for name, value in cache.environment(place).items()]
    return "\n".join([*exports, f'{ON_ALL_NODES} mkdir -p "$HF_HOME"'])


_ADDRESSES = "bash -c 'hostname --ip-address; hostname --all-ip-addresses'"


_SCRIPT = """\
#!/bin/bash
{directives}
set -euo pipefail
# Slurm warns the batch script before the time is up: the labeler then finishes the units at work. The warning
# may also come before it has begun, or after it has ended, and is no failure of this script.
job=""
warned=""
told=""
trap 'warned=yes; if [ -n "$job" ]; then told=yes; {terminate} || true; fi' TERM
export RAY_USAGE_STATS_ENABLED=0
# Since Slurm 22.05 steps no longer take over the job's cores per task by themselves.
export SRUN_CPUS_PER_TASK="${{SLURM_CPUS_PER_TASK:-{cores}}}"
# Sites that start jobs with --export=NONE keep this script's variables from its steps, the token among them.
export SLURM_EXPORT_ENV=ALL
# Ray listens on the nodes' network: only this job's own steps have the token.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
export RAY_AUTH_TOKEN
# A folder of this user and job: one that all users share belongs to whoever used the node first.
{scratch_is_set}
RAY_TMPDIR="{scratch}/ray-$(id -u)-$SLURM_JOB_ID"
export RAY_TMPDIR
if [ "${{#RAY_TMPDIR}}" -gt {longest} ]; then
  echo "$RAY_TMPDIR is too long for Ray's sockets (at most {longest} bytes); set a shorter slurm.scratch" >&2
  exit 1
fi
{setup}

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk 'NR == 1')
{all_nodes} mkdir -p -m 700 "$RAY_TMPDIR"
{cache}
{prepare}
# The first address that other nodes reach: Debian's /etc/hosts gives a machine's name a loopback one.
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" {addresses} | tr ' /' '\n\n' |
  awk '/^[0-9]+[.][0-9]+[.][0-9]+[.][0-9]+$/ && !/^127[.]/ && !found++')
if [ -z "$head_ip" ]; then
  echo "no IPv4 address that other nodes reach on $head_node; set slurm.interface" >&2
  exit 1
fi
# Several jobs may share a node, so ports follow from the job's number: a second page or server for clients
# at the same port would end the whole head.
port=$(( {port} + SLURM_JOB_ID % 1000 ))
export RAY_ADDRESS="$head_ip:$port"

srun --nodes=1 --ntasks=1 --nodelist="$head_node" --overlap \\
  {step}{ray} start --head --node-ip-address="$head_ip" --port="$port" \\
  --include-dashboard=false --ray-client-server-port=$(( port + 1000 )) \\
  {node} &
steps=($!)
answers=""
for _ in $(seq 60); do
  [ -z "$warned" ] || break
  if {here}{ray} status --address "$RAY_ADDRESS" >/dev/null 2>&1; then
    answers=yes
    break
  fi
  kill -0 "${{steps[0]}}" 2>/dev/null || break
  sleep 2
done
if [ -z "$answers" ] && [ -z "$warned" ]; then
  echo "Ray's head on $head_node has ended or does not answer; its messages are above" >&2
  exit 1
fi
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes=$(( SLURM_JOB_NUM_NODES - 1 )) --ntasks=$(( SLURM_JOB_NUM_NODES - 1 )) \\
    --exclude="$head_node" --overlap \\
    {step}{ray} start --address="$RAY_ADDRESS" {node} &
  steps+=($!)
fi

status=0
if [ -z "$warned" ]; then
  {note}{here}{labeler} &
  job=$!
  if [ -n "$warned" ] && [ -z "$told" ]; then
    {terminate} || true
  fi
  wait "$job" || status=$?
  # A wait cut short by the trap says so by a status above 128; the job itself then still drains.
  while kill -0 "$job" 2>/dev/null; do
    status=0
    wait "$job" || status=$?
  done
  # So it does where the job ended meanwhile; how it did, Bash remembers.
  if [ "$status" -eq 143 ]; then
    status=0
    wait "$job" || status=$?
  fi
fi
# One that was warned before it listened has begun nothing: it takes another turn as well.
if [ -n "$warned" ] && {{ [ -z "$job" ] || [ "$status" -eq 143 ]; }}; then
  echo "warned before the labeler had begun: raise the time limit if this comes again" >&2
  status=4
  # One whose time was used up gets nowhere by another turn; it may once, while an image is still fetched.
  if [ "$SECONDS" -ge {turn_sec} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -ge {most_restarts} ]; then
    echo "turn $(( SLURM_RESTART_COUNT + 1 )) has ended like this, so no other is asked for" >&2
    echo "raise slurm.hours, render and submit again; what is labeled stays" >&2
    status=1
  fi
fi
kill "${{steps[@]}}" 2>/dev/null || true
wait "${{steps[@]}}" 2>/dev/null || true
{all_nodes} rm -rf "$RAY_TMPDIR" || true
{clean}
# One task of an array has the number of the whole array, which would all be queued again.
me="$SLURM_JOB_ID"
if [ -n "${{SLURM_ARRAY_JOB_ID:-}}" ]; then
  me="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
# 4: the job was interrupted before its end; unless it was cancelled, ask Slurm for another turn, which goes
# on where it stopped.
if [ "$status" -eq 4 ] && [[ "$(scontrol show job "$me")" == *JobState=RUNNING* ]]; then
  scontrol requeue "$me"
fi
exit "$status"
"""
