"""A SkyPilot task: one kind of machine on whichever cloud has it, and the job, resumed by its store. Pure.

SkyPilot runs on a Ray cluster of its own, on other ports: `ray stop` must never be called on its machines,
and its template `start_cluster` starts a second one beside it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

from cluster.describe.fit.cache import CACHE_FOLDER, disk_gb
from cluster.describe.image import reference_of
from cluster.describe.job_paths import refuse_local_paths
from cluster.describe.merging import merged
from cluster.describe.settings.accelerators import NAMES_OF_SKYPILOT
from cluster.describe.settings.cluster import ClusterConfig
from cluster.describe.shell_words import path_word
from cluster.jobs.submission import refuse_secrets
from labeler.config.loading import JobConfig, resolved
from logitstore.common.config_file import ConfigError

JOB_FILE = "/tmp/penumbra-job.json"
SECRETS = ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN")
"""Given by `sky jobs launch --secret NAME` from the environment there; never written into the file."""


OURS = {
    "run": "it starts Ray and the job; add what comes before as setup",
    "num_nodes": "it is count of the group",
    "service": "a job is no service; launch one by a file of its own",
    "pool": "a job has machines of its own; leave it out",
}
"""Fields of a task that would part it from the job."""
OURS_OF_RESOURCES = {
    "accelerators": "they are accelerator and gpus of the group, against which the job is held",
    "image_id": "it is image",
}
"""Fields of its resources that a setting says."""
TASK_FIELDS = (
    "api_server_access", "config", "envs", "event_callback", "file_mounts", "file_mounts_mapping", "inputs",
    "managed_secrets", "name", "outputs", "resources", "secrets", "setup", "volume_mounts", "volumes",
    "workdir",
)  # fmt: skip
RESOURCE_FIELDS = (
    "accelerator_args", "accelerators", "any_of", "autostop", "cloud", "cpus", "disk_size", "disk_tier",
    "ephemeral_storage", "image_id", "infra", "instance_type", "job_recovery", "labels", "local_disk",
    "max_hourly_cost", "memory", "network_tier", "ordered", "ports", "priority", "priority_class", "region",
    "use_spot", "volumes", "zone",
)  # fmt: skip
"""What SkyPilot 0.14 knows."""


def task(cluster: ClusterConfig, job: JobConfig) -> dict[str, Any]:
    """The task file of `sky jobs launch`, which starts the job again where machines are taken away.

    Raises:
        ConfigError: several groups, no image, a path of this machine, or an addition that cannot be.
    """
    group, *others = cluster.groups
    if others:
        raise ConfigError(
            f"{len(cluster.groups)} groups, but a SkyPilot task has machines of one kind; describe each kind "
            "as a cluster of its own"
        )
    if not cluster.image:
        raise ConfigError("image is missing; SkyPilot starts one (render --kind dockerfile makes it)")
    own = cluster.skypilot.task
    _check_added(own)
    resources: dict[str, Any] = {
        "image_id": f"docker:{reference_of(cluster.image)}",
        "disk_size": disk_gb(cluster, group) + cluster.cache.size_gb,
        "cpus": f"{group.cores}+",
        "memory": f"{group.memory_gb}+",
    }
    if group.gpus:
        name = NAMES_OF_SKYPILOT.get(group.accelerator, group.accelerator)
        resources["accelerators"] = {name: group.gpus}
    if (
        group.spot and not {"any_of", "ordered"} & own.get("resources", {}).keys()
    ):  # and machines at the full price where no zone has any at the lower one
        resources["any_of"] = [{"use_spot": True}, {"use_spot": False}]
    bucket = cluster.cache.bucket
    mounts = {CACHE_FOLDER: {"source": bucket, "mode": "MOUNT_CACHED"}} if bucket else {}
    rendered = {
        "name": cluster.name,
        "num_nodes": group.count,
        "resources": resources,
        **({"file_mounts": mounts} if mounts else {}),
        "envs": {"RAY_USAGE_STATS_ENABLED": "0"}
        | (cluster.cache.environment(CACHE_FOLDER) if bucket else {}),
        "secrets": dict.fromkeys(SECRETS),
        "run": _RUN.format(
            python=path_word(cluster.python), job_file=JOB_FILE, settings=_settings(job, group.name)
        ),
    }
    return merged(rendered, own)


def _check_added(own: dict[str, Any]) -> None:
    """Raises ConfigError for a field that SkyPilot does not know, or that is not the user's to give."""
    for name, why in OURS.items():
        if name in own:
            raise ConfigError(f"skypilot.task has {name} = {own[name]!r}, which is not merged: {why}")
    _check_fields("skypilot.task", own, TASK_FIELDS)
    if "secrets" in own and not isinstance(own["secrets"], dict):
        raise ConfigError(
            f"skypilot.task.secrets = {own['secrets']!r} would take the place of {', '.join(SECRETS)}; name "
            "yours as managed_secrets"
        )
    resources = own.get("resources", {})
    _check_fields("skypilot.task.resources", resources, RESOURCE_FIELDS)
    for name, why in OURS_OF_RESOURCES.items():
        if name in resources:
            raise ConfigError(
                f"skypilot.task.resources has {name} = {resources[name]!r}, which is not merged: {why}"
            )
    for choice in ("any_of", "ordered"):
        choices = resources.get(choice, [])
        for one in choices if isinstance(choices, list) else [choices]:
            _check_fields(f"skypilot.task.resources.{choice}", one, RESOURCE_FIELDS)
    variables = own.get("envs", {})
    _check_fields("skypilot.task.envs", variables, variables)
    for name, value in variables.items():
        if not isinstance(value, str):
            raise ConfigError(f"skypilot.task.envs.{name} = {value!r} must be a text; put it in quotes")


def _check_fields(place: str, own: object, known: Iterable[str]) -> None:
    if not isinstance(own, dict):
        raise ConfigError(f"{place} = {own!r} must be a table, such as {{ name = 'value' }}; write it as one")
    for name in own:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"{place}: SkyPilot has no {name!r}; {meant}")


def _settings(job: JobConfig, group: str) -> str:
    """The job as JSON, without the resource of its group, which every machine of the task belongs to."""
    document = resolved(job)
    refuse_secrets(document)
    refuse_local_paths(job, "machine of a task")
    document["workers"]["resources"].pop(f"group-{group}", None)
    return json.dumps(document, indent=2)


_RUN = """\
set -euo pipefail
export RAY_AUTH_MODE=token
# A Ray cluster beside SkyPilot's own one.
~/sky_templates/ray/start_cluster
if [ "$SKYPILOT_NODE_RANK" -eq 0 ]; then
  cat >{job_file} <<'END_OF_JOB'
{settings}
END_OF_JOB
  RAY_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | sed -n 1p):6379"
  export RAY_ADDRESS
  {python} -P -m labeler run {job_file}
fi
"""
