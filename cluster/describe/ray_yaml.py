"""Ray's own cluster launcher (`ray up`): AWS, GCP, and machines of your own. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Any

from cluster.describe.ec2 import check_instance
from cluster.describe.fit.cache import CACHE_FOLDER, disk_gb
from cluster.describe.fit.machines import check_processor, machine_for
from cluster.describe.image import reference_of
from cluster.describe.merging import merged
from cluster.describe.settings.cluster import ClusterConfig, GroupConfig
from cluster.describe.shell_words import path_word
from logitstore.common.config_file import ConfigError

ZONE_OF_AWS = re.compile(r"[a-z]+(-[a-z]+)+-\d+[a-z]")
ADDRESS = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
ZONE_OF_GCP = re.compile(r"[a-z]+(-[a-z0-9]+)+-[a-z]")
TOKEN_FILE = "~/.ray/auth_token"
"""Where Ray looks for its token; the same here and on the machines, to which `ray up` copies it."""
HEAD_START = (
    "ulimit -n 65536; RAY_AUTH_MODE=token ray start --head --port=6379 --dashboard-host=127.0.0.1 "
    "--metrics-export-port=8080 --autoscaling-config=~/ray_bootstrap_config.yaml --disable-usage-stats"
)
WORKER_START = (
    "ulimit -n 65536; RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379 "
    "--metrics-export-port=8080 --disable-usage-stats"
)
DOCKER_ACCESS = ["sudo usermod -aG docker $USER || true", "sleep 15"]
"""So that the ssh user may run docker; the pause outlives the connection that has not got the right yet."""


def aws(cluster: ClusterConfig) -> dict[str, Any]:
    """Raises ConfigError for a region or machine that AWS does not take."""
    if ZONE_OF_AWS.fullmatch(cluster.region):
        raise ConfigError(
            f"region {cluster.region!r} is a zone; write region = {cluster.region[:-1]!r}, and in aws.node "
            "the SubnetIds of that zone"
        )
    types: dict[str, Any] = {"head": _head(_ec2_machine(cluster, None))}
    for group in cluster.groups:
        cores = machine_for(group, "aws").cores
        types[group.name] = _group(group, cores, _ec2_machine(cluster, group))
    for name, one in types.items():
        check_instance(name, one["node_config"])
    provider = {"type": "aws", "region": cluster.region, "cache_stopped_nodes": False}
    return _whole(cluster, provider, {"ssh_user": "ubuntu"}, types)


def _ec2_machine(cluster: ClusterConfig, group: GroupConfig | None) -> dict[str, Any]:
    """The machine of a group, or of the head."""
    kind = {"VolumeType": "gp3", "Throughput": cluster.aws.disk_mb_per_sec}
    size = cluster.disk_gb if group is None else disk_gb(cluster, group)
    config: dict[str, Any] = {
        "InstanceType": machine_for(group or cluster.head, "aws").name,
        "ImageId": cluster.aws.machine_image,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": size, **kind}}],
    }
    added = merged(cluster.aws.node, group.aws_node if group else {})
    if "ImageId" not in added:
        check_processor(config["InstanceType"], "aws", cluster.aws.machine_image)
    if group is not None and group.spot:
        config["InstanceMarketOptions"] = {"MarketType": "spot"}
    if group is not None and cluster.aws.worker_profile:
        # Ray gives the head a profile of its own, and the workers none.
        _refuse_both(added, "IamInstanceProfile", "aws.worker_profile")
        config["IamInstanceProfile"] = {"Name": cluster.aws.worker_profile}
    return merged(config, added)


def gcp(cluster: ClusterConfig) -> dict[str, Any]:
    """Raises ConfigError without a project and a zone."""
    if not cluster.gcp.project or not cluster.gcp.zone:
        raise ConfigError("gcp.project and gcp.zone are missing; a GCP cluster needs both")
    if not ZONE_OF_GCP.fullmatch(cluster.gcp.zone):
        raise ConfigError(
            f"gcp.zone {cluster.gcp.zone!r} is no zone; write a region with the letter of a zone of it, as "
            "us-central1-a"
        )
    types: dict[str, Any] = {"head": _head(_compute_machine(cluster, None))}
    for group in cluster.groups:
        types[group.name] = _group(group, machine_for(group, "gcp").cores, _compute_machine(cluster, group))
    provider = {
        "type": "gcp",
        "region": cluster.gcp.zone.rpartition("-")[0],
        "availability_zone": cluster.gcp.zone,
        "project_id": cluster.gcp.project,
        "cache_stopped_nodes": False,
    }
    return _whole(cluster, provider, {"ssh_user": "ubuntu"}, types)


def _compute_machine(cluster: ClusterConfig, group: GroupConfig | None) -> dict[str, Any]:
    """The machine of a group, or of the head."""
    machine = machine_for(group or cluster.head, "gcp")
    check_processor(machine.name, "gcp", cluster.gcp.machine_image)
    disks = _disks(cluster, group)
    config: dict[str, Any] = {"machineType": machine.name, "disks": disks}
    added = dict(merged(cluster.gcp.node, group.gcp_node if group else {}))
    if group is not None and machine.gpu_type:
        place = f"projects/{cluster.gcp.project}/zones/{cluster.gcp.zone}/acceleratorTypes"
        config["guestAccelerators"] = [
            {"acceleratorType": f"{place}/{machine.gpu_type}", "acceleratorCount": group.gpus}
        ]
    scheduling: dict[str, Any] = {}
    if group is not None and group.spot:  # "preemptible" is the older form, which ends after a day
        scheduling |= {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}
    if group is not None and group.gpus:
        scheduling["onHostMaintenance"] = "TERMINATE"
    own = added.pop("scheduling", {})
    for one in own if isinstance(own, list) else [own]:
        scheduling = merged(scheduling, one)
    if scheduling:  # Ray's examples have a list of one
        config["scheduling"] = [scheduling]
    if group is not None and cluster.gcp.worker_account:
        # Ray gives the head an account of its own, and the workers none.
        _refuse_both(added, "serviceAccounts", "gcp.worker_account")
        scopes = ["https://www.googleapis.com/auth/cloud-platform"]
        config["serviceAccounts"] = [{"email": cluster.gcp.worker_account, "scopes": scopes}]
    return merged(config, added)


def _disks(cluster: ClusterConfig, group: GroupConfig | None) -> list[dict[str, Any]]:
    """The boot disk, and a worker's local ones."""
    boot = {
        "boot": True,
        "autoDelete": True,
        "type": "PERSISTENT",
        "initializeParams": {
            "diskSizeGb": cluster.disk_gb if group is None else disk_gb(cluster, group),
            "sourceImage": cluster.gcp.machine_image,
            "diskType": f"zones/{cluster.gcp.zone}/diskTypes/{cluster.gcp.disk_type}",
        },
    }
    scratch = {
        "type": "SCRATCH",
        "autoDelete": True,
        "interface": "NVME",
        "initializeParams": {"diskType": f"zones/{cluster.gcp.zone}/diskTypes/local-ssd"},
    }
    return [boot] if group is None else [boot, *[scratch] * cluster.gcp.local_ssds]


def _refuse_both(added: Mapping[str, Any], field: str, setting: str) -> None:
    if field in added:
        raise ConfigError(
            f"{field} = {added[field]!r} is added to the machines, and {setting} says it too; keep one"
        )


def on_premise(cluster: ClusterConfig) -> dict[str, Any]:
    """All workers are of the first group's kind: Ray's local provider knows a single kind."""
    place = cluster.on_premise
    if not place.head_ip or not place.worker_ips:
        raise ConfigError("on_premise.head_ip and on_premise.worker_ips are missing; name your machines")
    addresses = [place.head_ip, *place.worker_ips]
    wrong = next((one for one in addresses if not _is_machine(one)), None)
    if wrong is not None:
        raise ConfigError(
            f"on_premise: {wrong!r} is neither an IPv4 address nor a name (`ray up` copies files by rsync, "
            "which does not take an IPv6 address so); write one of the two"
        )
    twice = sorted({one for one in addresses if addresses.count(one) > 1})
    if twice:
        raise ConfigError(
            f"{', '.join(twice)} is named twice by on_premise.head_ip and on_premise.worker_ips; name each "
            "machine once (the head takes no work)"
        )
    group, *others = cluster.groups
    if others:
        raise ConfigError(
            f"{len(cluster.groups)} groups, but Ray's on-premise launcher knows one kind of worker; describe "
            "a cluster per kind, or use Kubernetes or Slurm"
        )
    if group.count != len(place.worker_ips):
        raise ConfigError(
            f"group {group.name} has count = {group.count}, but on_premise.worker_ips names "
            f"{len(place.worker_ips)} machines; make them equal"
        )
    resources = f'{{"group-{group.name}": 1}}'
    start = f"{WORKER_START} --num-cpus={group.cores} --num-gpus={group.gpus} --resources='{resources}'"
    config = {
        "cluster_name": cluster.name,
        "provider": {
            "type": "local",
            "head_ip": place.head_ip,
            "worker_ips": list(place.worker_ips),
        },
        "auth": {"ssh_user": place.ssh_user, "ssh_private_key": place.ssh_private_key},
        "min_workers": len(place.worker_ips),
        "max_workers": len(place.worker_ips),
        "file_mounts": {TOKEN_FILE: TOKEN_FILE},
        "initialization_commands": _cache_commands(cluster, "local"),
        "head_start_ray_commands": [
            "ray stop",
            f"{_cache_variable(cluster)}{HEAD_START} --num-cpus=0 --num-gpus=0",
        ],
        "worker_start_ray_commands": ["ray stop", f"{_cache_variable(cluster)}{start}"],
    }
    return config | _docker(cluster)


def _is_machine(text: str) -> bool:
    """Whether it is a name, or an IPv4 address: of numbers alone it is one, or would be asked for in vain."""
    if re.fullmatch(r"[0-9.]+", text):
        try:
            return IPv4Address(text) is not None
        except ValueError:
            return False
    return ADDRESS.fullmatch(text) is not None


def _head(node_config: dict[str, Any]) -> dict[str, Any]:
    return {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0, "node_config": node_config}


def _group(group: GroupConfig, cores: int, node_config: dict[str, Any]) -> dict[str, Any]:
    resources = {"CPU": cores, f"group-{group.name}": 1}
    if group.gpus:
        resources["GPU"] = group.gpus
    return {
        "resources": resources,
        "min_workers": group.min_count,
        "max_workers": group.count,
        "node_config": node_config,
    }


def _whole(
    cluster: ClusterConfig, provider: dict[str, Any], auth: dict[str, Any], types: dict[str, Any]
) -> dict[str, Any]:
    config = {
        "cluster_name": cluster.name,
        "max_workers": sum(group.count for group in cluster.groups),
        "idle_timeout_minutes": cluster.idle_minutes,
        "provider": provider,
        "auth": auth,
        "available_node_types": types,
        "head_node_type": "head",
        # Ray's defaults would install packages, a nightly build of Ray among them: all is in the image.
        "initialization_commands": [
            *(DOCKER_ACCESS if cluster.image else []),
            *_cache_commands(cluster, provider["type"]),
        ],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "file_mounts": {TOKEN_FILE: TOKEN_FILE},
        "head_start_ray_commands": ["ray stop", f"{_cache_variable(cluster)}{HEAD_START}"],
        "worker_start_ray_commands": ["ray stop", f"{_cache_variable(cluster)}{WORKER_START}"],
    }
    return config | _docker(cluster)


LOCAL_DISKS = """\
if ! mountpoint -q {path}; then
  disks=$(ls /dev/disk/by-id/google-local-nvme-ssd-* 2>/dev/null || true)
  if [ -n "$disks" ]; then
    command -v mdadm >/dev/null || {{ sudo apt-get -q update && sudo apt-get -q -y install mdadm; }}
    # shellcheck disable=SC2086
    sudo mdadm --create /dev/md0 --force --run --level=0 --raid-devices="$(echo $disks | wc -w)" $disks &&
      sudo mkfs.ext4 -q -F /dev/md0 && sudo mkdir -p {path} && sudo mount /dev/md0 {path}
  fi
fi"""
"""On a GCP machine: its local disks, which come without a file system, as one at the cache's place."""


def _cache_commands(cluster: ClusterConfig, provider: str) -> list[str]:
    """On each machine before its container: the cache's folder, which the container's user may write to."""
    path = cluster.cache.host_path
    if not path:
        return []
    disks = [LOCAL_DISKS.format(path=path)] if provider == "gcp" else []
    return [*disks, f"sudo mkdir -p {path} && sudo chmod 1777 {path}"]


def _cache_variable(cluster: ClusterConfig) -> str:
    """Before `ray start`, where no container gets the cache by options."""
    path = cluster.cache.host_path
    if not path or cluster.image:
        return ""
    return "".join(f"export {name}={value}; " for name, value in cluster.cache.environment(path).items())


def _docker(cluster: ClusterConfig) -> dict[str, Any]:
    """Without an image the machines must have the project installed already."""
    if not cluster.image:
        return {}
    options = ["--ulimit nofile=65536:65536"]
    if cluster.docker.env_file:
        options.append(f"--env-file {path_word(cluster.docker.env_file)}")
    if cluster.cache.host_path:
        environment = cluster.cache.environment(CACHE_FOLDER)
        options.append(f"-v {cluster.cache.host_path}:{CACHE_FOLDER}")
        options += [f"-e {name}={value}" for name, value in environment.items()]
    options += cluster.docker.run_options
    docker = {"image": reference_of(cluster.image), "container_name": "penumbra", "run_options": options}
    return {"docker": docker | {"pull_before_run": True}}
