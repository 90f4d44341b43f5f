"""Pods of a cluster in Kubernetes: what they ask for, see and are kept from. Pure."""

from __future__ import annotations

from typing import Any

from cluster.describe.fit.cache import CACHE_FOLDER, USED
from cluster.describe.settings.cluster import ClusterConfig, GroupConfig, HeadConfig

JOB_FOLDER = "/etc/penumbra"
HEAD = "ray-head"
"""Name of the head's container."""
POLICY_LABEL = "penumbra/cluster"
"""Label of every pod of a cluster, by which the network policy selects it; no other tool has this name."""
CACHE_MOUNT = {"name": "cache", "mountPath": CACHE_FOLDER}
USER_ID = 1000
"""The user in the image that the rendered Dockerfile makes: Kubernetes knows users by number alone."""
GRACE_MARGIN_SEC = 15
CORES_SHARE, MEMORY_SHARE = 0.9, 0.85
"""Shares of a node for a pod that is to have it alone: the rest is for Kubernetes and its daemons."""


def pod_cores(cores: int) -> int:
    """CPU cores of a pod on a node with so many."""
    return max(1, int(cores * CORES_SHARE))


def resources_of(part: HeadConfig | GroupConfig) -> dict[str, str]:
    memory_gb = max(1, int(part.memory_gb * MEMORY_SHARE))
    return {"cpu": str(pod_cores(part.cores)), "memory": f"{memory_gb}Gi"}


def spot_label(cluster: ClusterConfig) -> tuple[str, str]:
    name, _, value = cluster.kubernetes.spot_label.partition("=")
    return name, value


def off_spot(cluster: ClusterConfig) -> dict[str, Any]:
    """Keeps a pod from spot nodes, which not every platform taints: a head that goes takes its job along."""
    if not cluster.kubernetes.spot_label:
        return {}
    name, value = spot_label(cluster)
    term = {"matchExpressions": [{"key": name, "operator": "NotIn", "values": [value]}]}
    nodes = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {"affinity": {"nodeAffinity": nodes}}


def container_of(
    cluster: ClusterConfig, name: str, resources: dict[str, str], grace_sec: int
) -> dict[str, Any]:
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # A node told to go takes no more work, and ends when its actors have, or after so many seconds.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(grace_sec - GRACE_MARGIN_SEC),
    }
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    # The head reads a tokenizer, which a shared cache may have; no room for weights is set aside there.
    if cluster.cache.given in USED["kuberay-cluster"] and not (cluster.cache.size_gb and name == HEAD):
        environment |= cluster.cache.environment(CACHE_FOLDER)
        mounts.append(CACHE_MOUNT)
        if cluster.cache.size_gb:
            resources = resources | {"ephemeral-storage": f"{cluster.cache.size_gb}G"}
    container: dict[str, Any] = {
        "name": name,
        "image": cluster.image,
        "resources": {"requests": resources, "limits": resources},
        "env": [{"name": variable, "value": value} for variable, value in environment.items()],
        # vLLM's workers talk through shared memory, of which a pod has 64 MB by default.
        "volumeMounts": mounts,
        **container_rights(cluster),
    }
    if cluster.kubernetes.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.kubernetes.secret}}]
    return container


def pod_of(
    cluster: ClusterConfig,
    container: dict[str, Any],
    more: dict[str, Any],
    grace_sec: int,
    job_name: str | None = None,
) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if CACHE_MOUNT in container["volumeMounts"]:
        volumes.append({"name": "cache", **_cache_volume(cluster)})
    if job_name is not None:
        volumes.append({"name": "job", "configMap": {"name": job_name}})
        container["volumeMounts"].append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
    spec = {
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": grace_sec,
        **more,
        **_common(cluster),
    }
    if cluster.cache.host_path:
        spec["initContainers"] = [_opened_folder(cluster)]
    metadata = {
        "labels": {"app.kubernetes.io/name": "penumbra", POLICY_LABEL: cluster.name},
        # Consolidation would take the head, and with it the job, or a worker in the middle of a unit.
        "annotations": {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        },
    }
    return {"metadata": metadata, "spec": spec}


def templates_in(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The pod templates of a RayCluster or RayJob, by where they stand; none of other documents."""
    spec = document["spec"] if document["kind"] in ("RayCluster", "RayJob") else {}
    cluster_spec = spec.get("rayClusterSpec", spec)
    if not cluster_spec:
        return []
    found = [("head", cluster_spec["headGroupSpec"]["template"])]
    found += [(f"group {one['groupName']}", one["template"]) for one in cluster_spec["workerGroupSpecs"]]
    submitter = spec.get("submitterPodTemplate")
    return found if submitter is None else [*found, ("submitter", submitter)]


def submitter_of(cluster: ClusterConfig) -> dict[str, Any] | None:
    """The pod that submits a RayJob, as KubeRay has it, with what all pods have; None where that is nothing.

    KubeRay's own could not pull the image, nor run in a restricted namespace.
    """
    common = _common(cluster)
    if not common:
        return None
    resources = {"requests": {"cpu": "500m", "memory": "200Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    container: dict[str, Any] = {
        "name": "ray-job-submitter",
        "image": cluster.image,
        "resources": resources,
        **container_rights(cluster),
    }
    return {"spec": {"restartPolicy": "Never", "containers": [container], **common}}


def container_rights(cluster: ClusterConfig) -> dict[str, Any]:
    """The security context of a container in a restricted namespace."""
    rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {"securityContext": rights} if cluster.kubernetes.restricted else {}


def _common(cluster: ClusterConfig) -> dict[str, Any]:
    """What every pod has: account, secrets to pull the image by, priority, user."""
    kubernetes = cluster.kubernetes
    common: dict[str, Any] = {}
    if kubernetes.service_account:
        common["serviceAccountName"] = kubernetes.service_account
    if kubernetes.pull_secrets:
        common["imagePullSecrets"] = [{"name": name} for name in kubernetes.pull_secrets]
    if kubernetes.priority_class:
        common["priorityClassName"] = kubernetes.priority_class
    if kubernetes.restricted:
        common["securityContext"] = {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    return common


def _opened_folder(cluster: ClusterConfig) -> dict[str, Any]:
    """Lets every user write to the machine's folder, which Kubernetes makes root's, as a mounted disk is.

    A namespace that forbids root forbids folders of the machine too.
    """
    room = {"cpu": "100m", "memory": "64Mi"}
    return {
        "name": "cache-folder",
        "image": cluster.image,
        "command": ["chmod", "1777", CACHE_FOLDER],
        "securityContext": {"runAsUser": 0, "runAsNonRoot": False},
        "resources": {"requests": room, "limits": room},
        "volumeMounts": [CACHE_MOUNT],
    }


def _cache_volume(cluster: ClusterConfig) -> dict[str, Any]:
    cache = cluster.cache
    if cache.claim:
        return {"persistentVolumeClaim": {"claimName": cache.claim}}
    if cache.host_path:
        return {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}
    return {"emptyDir": {"sizeLimit": f"{cache.size_gb}G"}}
