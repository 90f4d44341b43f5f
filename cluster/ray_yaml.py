"""Ray's own cluster launcher (`ray up`): AWS, GCP, and machines of your own. Pure."""

from __future__ import annotations

from typing import Any

from cluster.config import ClusterConfig, GroupConfig
from cluster.machines import machine_for
from labeler.config import ConfigError

DASHBOARD_PORT = 8265
HEAD_START = [
    "ray stop",
    "ray start --head --port=6379 --dashboard-host=127.0.0.1 --metrics-export-port=8080 "
    "--autoscaling-config=~/ray_bootstrap_config.yaml --disable-usage-stats",
]
WORKER_START = [
    "ray stop",
    "ray start --address=$RAY_HEAD_IP:6379 --metrics-export-port=8080 --disable-usage-stats",
]
DISK_GB = 200
"""Room for the image and a teacher's weights."""


def aws(cluster: ClusterConfig) -> dict[str, Any]:
    def node(name: str, spot: bool) -> dict[str, Any]:
        disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": DISK_GB, "VolumeType": "gp3"}}
        config: dict[str, Any] = {"InstanceType": name, "BlockDeviceMappings": [disk]}
        if spot:
            config["InstanceMarketOptions"] = {"MarketType": "spot"}
        return config

    types: dict[str, Any] = {"head": _head(node(machine_for(cluster.head, "aws").name, False))}
    for group in cluster.groups:
        machine = machine_for(group, "aws")
        types[group.name] = _group(group, machine.cores, node(machine.name, group.spot))
    provider = {"type": "aws", "region": cluster.region, "cache_stopped_nodes": False}
    return _whole(cluster, provider, {"ssh_user": "ubuntu"}, types)


def gcp(cluster: ClusterConfig) -> dict[str, Any]:
    if not cluster.gcp.project or not cluster.gcp.zone:
        raise ConfigError("gcp.project and gcp.zone are missing; a GCP cluster needs both")

    def node(group: GroupConfig | None) -> dict[str, Any]:
        machine = machine_for(group or cluster.head, "gcp")
        image = (
            "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"
        )
        disk = {
            "boot": True,
            "autoDelete": True,
            "type": "PERSISTENT",
            "initializeParams": {"diskSizeGb": DISK_GB, "sourceImage": image},
        }
        config: dict[str, Any] = {"machineType": machine.name, "disks": [disk]}
        if group is None:
            return config
        if machine.gpu_type:
            place = f"projects/{cluster.gcp.project}/zones/{cluster.gcp.zone}/acceleratorTypes"
            config["guestAccelerators"] = [
                {"acceleratorType": f"{place}/{machine.gpu_type}", "acceleratorCount": group.gpus}
            ]
        scheduling: dict[str, Any] = {"preemptible": group.spot}
        if group.gpus:
            scheduling["onHostMaintenance"] = "TERMINATE"
        config["scheduling"] = [scheduling]
        return config

    types: dict[str, Any] = {"head": _head(node(None))}
    for group in cluster.groups:
        types[group.name] = _group(group, machine_for(group, "gcp").cores, node(group))
    provider = {
        "type": "gcp",
        "region": cluster.gcp.zone.rpartition("-")[0],
        "availability_zone": cluster.gcp.zone,
        "project_id": cluster.gcp.project,
        "cache_stopped_nodes": False,
    }
    return _whole(cluster, provider, {"ssh_user": "ubuntu"}, types)


def on_premise(cluster: ClusterConfig) -> dict[str, Any]:
    """All workers are of the first group's kind: Ray's local provider knows a single kind."""
    place = cluster.on_premise
    if not place.head_ip or not place.worker_ips:
        raise ConfigError("on_premise.head_ip and on_premise.worker_ips are missing; name your machines")
    group, *others = cluster.groups
    if others:
        raise ConfigError(
            f"{len(cluster.groups)} groups, but Ray's on-premise launcher knows one kind of worker; describe "
            "a cluster per kind, or use Kubernetes or Slurm"
        )
    resources = f'{{"group-{group.name}": 1}}'
    start = f"{WORKER_START[1]} --num-cpus={group.cores} --num-gpus={group.gpus} --resources='{resources}'"
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
        "idle_timeout_minutes": cluster.idle_minutes,
        "head_start_ray_commands": [HEAD_START[0], f"{HEAD_START[1]} --num-cpus=0 --num-gpus=0"],
        "worker_start_ray_commands": [WORKER_START[0], start],
    }
    return config | _docker(cluster)


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
        "head_start_ray_commands": HEAD_START,
        "worker_start_ray_commands": WORKER_START,
    }
    return config | _docker(cluster)


def _docker(cluster: ClusterConfig) -> dict[str, Any]:
    """Without an image the machines must have the project installed already."""
    if not cluster.image:
        return {}
    options = ["--ulimit nofile=65536:65536"]
    docker = {"image": cluster.image, "container_name": "penumbra", "run_options": options}
    return {"docker": docker | {"pull_before_run": True}}
