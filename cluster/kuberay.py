"""Kubernetes through KubeRay: a RayCluster to submit to, or a RayJob that brings its own. Pure."""

from __future__ import annotations

import json
from typing import Any

from cluster.config import ClusterConfig, GroupConfig
from labeler.config import ConfigError, JobConfig, resolved

API_VERSION = "ray.io/v1"
JOB_FOLDER = "/etc/penumbra"
GRACE_SEC = 120
"""From the notice that a pod must go to its end: time for an actor to finish or give back its units."""


def ray_cluster(cluster: ClusterConfig) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "RayCluster",
        "metadata": _metadata(cluster),
        "spec": cluster_spec(cluster, job_volume=False),
    }


def ray_job(cluster: ClusterConfig, job: JobConfig) -> list[dict[str, Any]]:
    """The job's settings as a ConfigMap, and the RayJob that reads them. Deleting it drains the job."""
    document = resolved(job)
    if "://" not in document["output"]["uri"]:
        raise ConfigError(
            f"output.uri {document['output']['uri']!r} is a path, which is lost with its pod; use s3://"
        )
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(cluster, "-job"),
        "data": {"job.json": json.dumps(document, indent=2)},
    }
    ray = {
        "apiVersion": API_VERSION,
        "kind": "RayJob",
        "metadata": _metadata(cluster),
        "spec": {
            "entrypoint": f"{cluster.python} -m labeler run {JOB_FOLDER}/job.json",
            "submissionMode": "K8sJobMode",
            "runtimeEnvYAML": f'env_vars:\n  RAY_JOB_STOP_WAIT_TIME_S: "{int(job.workers.drain_sec) + 30}"\n',
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 60 * cluster.idle_minutes,
            "backoffLimit": 3,  # each attempt resumes on the same store
            "rayClusterSpec": cluster_spec(cluster, job_volume=True),
        },
    }
    return [config_map, ray]


def cluster_spec(cluster: ClusterConfig, *, job_volume: bool) -> dict[str, Any]:
    if not cluster.image:
        raise ConfigError("image is missing; Kubernetes needs one (render --kind dockerfile makes it)")
    head_resources = {"cpu": str(cluster.head.cores), "memory": f"{cluster.head.memory_gb}Gi"}
    head = _container(cluster, "ray-head", head_resources)
    head["ports"] = [
        {"containerPort": port, "name": name}
        for port, name in ((6379, "gcs-server"), (8265, "dashboard"), (8080, "metrics"))
    ]
    return {
        "rayVersion": cluster.ray_version,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"idleTimeoutSeconds": 60 * cluster.idle_minutes, "upscalingMode": "Default"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", "metrics-export-port": "8080"},
            "template": _pod(cluster, head, {}, job_volume),
        },
        "workerGroupSpecs": [_worker_group(cluster, group) for group in cluster.groups],
    }


def _worker_group(cluster: ClusterConfig, group: GroupConfig) -> dict[str, Any]:
    resources = {"cpu": str(group.cores), "memory": f"{group.memory_gb}Gi"}
    pod: dict[str, Any] = {}
    selector: dict[str, str] = {}
    if group.gpus:
        resources["nvidia.com/gpu"] = str(group.gpus)
        label = cluster.kubernetes.gpu_labels.get(group.accelerator)
        if label:
            selector[cluster.kubernetes.gpu_label] = label
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if group.spot and cluster.kubernetes.spot_label:
        name, _, value = cluster.kubernetes.spot_label.partition("=")
        selector[name] = value
        spot = {"key": name, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        pod["tolerations"] = [*pod.get("tolerations", []), spot]
    if selector:
        pod["nodeSelector"] = selector
    named = json.dumps(json.dumps({f"group-{group.name}": 1}))  # KubeRay wants JSON inside quotes
    return {
        "groupName": group.name,
        "replicas": group.min_count,
        "minReplicas": group.min_count,
        "maxReplicas": group.count,
        "rayStartParams": {"resources": named, "metrics-export-port": "8080"},
        "template": _pod(cluster, _container(cluster, "ray-worker", resources), pod, False),
    }


def _container(cluster: ClusterConfig, name: str, resources: dict[str, str]) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": cluster.image,
        "resources": {"requests": resources, "limits": resources},
        "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        # vLLM's workers talk through shared memory, of which a pod has 64 MB by default.
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    if cluster.kubernetes.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.kubernetes.secret}}]
    return container


def _pod(
    cluster: ClusterConfig, container: dict[str, Any], more: dict[str, Any], job_volume: bool
) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if job_volume:
        volumes.append({"name": "job", "configMap": {"name": f"{cluster.name}-job"}})
        container["volumeMounts"].append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
    spec = {
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": GRACE_SEC,
        **more,
    }
    if cluster.kubernetes.service_account:
        spec["serviceAccountName"] = cluster.kubernetes.service_account
    return {"metadata": {"labels": {"app.kubernetes.io/name": "penumbra"}}, "spec": spec}


def _metadata(cluster: ClusterConfig, suffix: str = "") -> dict[str, Any]:
    return {"name": cluster.name + suffix, "namespace": cluster.kubernetes.namespace}
