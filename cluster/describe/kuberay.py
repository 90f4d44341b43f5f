"""Kubernetes through KubeRay: a RayCluster to submit to, or a RayJob that brings its own. Pure."""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import Any

from cluster.describe.fit.cache import CACHE_FOLDER, USED
from cluster.describe.merging import merged
from cluster.describe.settings.cluster import ClusterConfig, GroupConfig, HeadConfig
from cluster.jobs.submission import STOP_MARGIN_SEC, refuse_secrets
from labeler.config.loading import JobConfig, is_local_path, resolved
from logitstore.common.config_file import ConfigError

API_VERSION = "ray.io/v1"
JOB_FOLDER = "/etc/penumbra"
HEAD = "ray-head"
"""Name of the head's container."""
CACHE_MOUNT = {"name": "cache", "mountPath": CACHE_FOLDER}
GRACE_SEC = 120
"""From the notice that a pod must go to its end, at least: time for its actors to finish their units."""
GRACE_MARGIN_SEC = 15
CORES_SHARE, MEMORY_SHARE = 0.9, 0.85
"""Of a node's, for a pod that is to have the node alone: the rest is Kubernetes' own and its daemons'."""


def ray_cluster(cluster: ClusterConfig) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "RayCluster",
        "metadata": _metadata(cluster, cluster.name, queued=True),
        "spec": _cluster_spec(cluster, GRACE_SEC, job_name=None),
    }


def ray_job(cluster: ClusterConfig, job: JobConfig, submission: str) -> list[dict[str, Any]]:
    """The job's settings as a ConfigMap, and the RayJob that reads them. Deleting it drains the job.

    `submission` is different for every rendering: two people's jobs, or two jobs of one person, must not
    replace each other's settings, and a job applied once more under another name goes on with the store.
    """
    document = resolved(job)
    refuse_secrets(document)
    stop_sec = int(job.workers.drain_sec) + STOP_MARGIN_SEC
    if is_local_path(job.output.uri):
        raise ConfigError(f"output.uri {job.output.uri!r} is a path, which is lost with its pod; use s3://")
    if is_local_path(job.input.uri):
        raise ConfigError(f"input.uri {job.input.uri!r} is a path, which no pod has; use s3://")
    model = job.teacher.model
    if model.startswith(("/", "./", "../", "~")) or os.path.isdir(model):
        raise ConfigError(
            f"teacher.model {model!r} is a path, which no pod has; name a Hugging Face id, or mount it by "
            "kubernetes.pod and kubernetes.head_pod, render a kuberay-cluster and submit to that"
        )
    name = job_name(cluster, job, submission)
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(cluster, name),
        "data": {"job.json": json.dumps(document, indent=2)},
    }
    ray = {
        "apiVersion": API_VERSION,
        "kind": "RayJob",
        "metadata": _metadata(cluster, name, queued=True),
        "spec": {
            "entrypoint": f"{shlex.quote(cluster.python)} -P -m labeler run {JOB_FOLDER}/job.json",
            "submissionMode": "K8sJobMode",
            "runtimeEnvYAML": json.dumps(
                {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_sec)}, "py_executable": cluster.python}
            ),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60 * cluster.idle_minutes,
            "backoffLimit": 3,  # each attempt resumes on the same store
            "rayClusterSpec": _cluster_spec(cluster, max(GRACE_SEC, stop_sec + 30), job_name=name),
        },
    }
    return [config_map, ray]


MAX_JOB_NAME = 47
"""KubeRay appends to a RayJob's name, and the whole must fit into 63 characters."""


def network_policy(cluster: ClusterConfig) -> dict[str, Any]:
    """Who may reach the cluster's pods: the pods of its own namespace, KubeRay's submitter among them."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(cluster, cluster.name),
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "penumbra"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}]}],
        },
    }


def job_name(cluster: ClusterConfig, job: JobConfig, submission: str) -> str:
    """CLUSTER-STORE-SUBMISSION, where a person recognises the first two and the last makes it unique."""
    store = re.sub(r"[^a-z0-9]+", "-", job.output.uri.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
    room = MAX_JOB_NAME - len(submission) - 1
    return f"{f'{cluster.name[:20]}-{store}'[:room].strip('-')}-{submission}"


def pod_cores(cores: int) -> int:
    """CPU cores of a pod on a node with so many."""
    return max(1, int(cores * CORES_SHARE))


def _cluster_spec(cluster: ClusterConfig, grace_sec: int, *, job_name: str | None) -> dict[str, Any]:
    if not cluster.image:
        raise ConfigError("image is missing; Kubernetes needs one (render --kind dockerfile makes it)")
    _require_labels(cluster)
    head = _container(cluster, HEAD, _resources(cluster.head), grace_sec)
    head["ports"] = [
        {"containerPort": port, "name": name}
        for port, name in ((6379, "gcs-server"), (8265, "dashboard"), (8080, "metrics"))
    ]
    closed = {"authOptions": {"mode": "token"}} if cluster.kubernetes.auth == "token" else {}
    scaling: dict[str, Any] = {"enableInTreeAutoscaling": cluster.kubernetes.autoscale}
    if cluster.kubernetes.autoscale:
        scaling["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": 60 * cluster.idle_minutes,
            "upscalingMode": "Default",
        }
    return {
        "rayVersion": cluster.ray_version,
        **closed,
        **scaling,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", "metrics-export-port": "8080"},
            "template": merged(_pod(cluster, head, {}, grace_sec, job_name), cluster.kubernetes.head_pod),
        },
        "workerGroupSpecs": [_worker_group(cluster, group, grace_sec) for group in cluster.groups],
    }


def _require_labels(cluster: ClusterConfig) -> None:
    """Nodes that cannot be told apart would give a group's pods to any GPU, or to nodes at full price."""
    gpu_groups = [group for group in cluster.groups if group.gpus]
    for group in gpu_groups if len(gpu_groups) > 1 else []:
        if group.accelerator not in cluster.kubernetes.gpu_labels:
            raise ConfigError(
                f"kubernetes.gpu_labels has no value for {group.accelerator!r}; with several kinds of GPUs "
                f"each needs the value that its nodes have for the label {cluster.kubernetes.gpu_label!r}"
            )
    for group in cluster.groups:
        if group.spot and not cluster.kubernetes.spot_label:
            raise ConfigError(
                f"group {group.name} is spot, but kubernetes.spot_label is missing; set it to the label of "
                "your spot nodes, for example 'cloud.google.com/gke-spot=true'"
            )


def _resources(part: HeadConfig | GroupConfig) -> dict[str, str]:
    memory_gb = max(1, int(part.memory_gb * MEMORY_SHARE))
    return {"cpu": str(pod_cores(part.cores)), "memory": f"{memory_gb}Gi"}


def _worker_group(cluster: ClusterConfig, group: GroupConfig, grace_sec: int) -> dict[str, Any]:
    resources = _resources(group)
    pod: dict[str, Any] = {}
    selector: dict[str, str] = {}
    if group.gpus:
        resources["nvidia.com/gpu"] = str(group.gpus)
        label = cluster.kubernetes.gpu_labels.get(group.accelerator)
        if label:
            selector[cluster.kubernetes.gpu_label] = label
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if group.spot:
        name, _, value = cluster.kubernetes.spot_label.partition("=")
        selector[name] = value
        spot = {"key": name, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        pod["tolerations"] = [*pod.get("tolerations", []), spot]
    if selector:
        pod["nodeSelector"] = selector
    least = group.min_count if cluster.kubernetes.autoscale else group.count
    template = _pod(cluster, _container(cluster, "ray-worker", resources, grace_sec), pod, grace_sec)
    named = json.dumps(json.dumps({f"group-{group.name}": 1}))  # KubeRay wants JSON inside quotes
    return {
        "groupName": group.name,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": group.count,
        "rayStartParams": {"resources": named, "metrics-export-port": "8080"},
        "template": merged(template, cluster.kubernetes.pod),
    }


def _container(
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
        environment["HF_HOME"] = CACHE_FOLDER
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
    }
    if cluster.kubernetes.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.kubernetes.secret}}]
    return container


def _pod(
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
    }
    if cluster.cache.host_path:
        spec["initContainers"] = [_opened_folder(cluster)]
    kubernetes = cluster.kubernetes
    if kubernetes.service_account:
        spec["serviceAccountName"] = kubernetes.service_account
    if kubernetes.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in kubernetes.pull_secrets]
    if kubernetes.priority_class:
        spec["priorityClassName"] = kubernetes.priority_class
    metadata = {
        "labels": {"app.kubernetes.io/name": "penumbra"},
        # Consolidation would take the head, and with it the job, or a worker in the middle of a unit.
        "annotations": {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        },
    }
    return {"metadata": metadata, "spec": spec}


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


def _metadata(cluster: ClusterConfig, name: str, *, queued: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": cluster.kubernetes.namespace}
    if queued and cluster.kubernetes.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": cluster.kubernetes.queue}
    return merged(metadata, cluster.kubernetes.metadata)
