"""Kubernetes through KubeRay: a RayCluster to submit to, or a RayJob that brings its own. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from cluster.describe.image import reference_of
from cluster.describe.job_paths import refuse_local_paths
from cluster.describe.kubernetes.pods import (
    HEAD,
    JOB_FOLDER,
    POLICY_LABEL,
    container_of,
    container_rights,
    off_spot,
    pod_of,
    resources_of,
    spot_label,
    submitter_of,
)
from cluster.describe.merging import merged
from cluster.describe.settings.accelerators import is_amd
from cluster.describe.settings.cluster import ClusterConfig, GroupConfig
from cluster.describe.shell_words import path_word
from cluster.jobs.submission import STOP_MARGIN_SEC, refuse_secrets
from labeler.config.loading import JobConfig, resolved
from logitstore.common.config_file import ConfigError

API_VERSION = "ray.io/v1"
OPERATOR = "kuberay-operator"
GRACE_SEC = 120
"""From the notice that a pod must go to its end, at least: time for its actors to finish their units."""


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
    refuse_local_paths(
        job,
        "pod",
        " by kubernetes.pod and kubernetes.head_pod, render a kuberay-cluster and submit to that",
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
            "entrypoint": f"{path_word(cluster.python)} -P -m labeler run {JOB_FOLDER}/job.json",
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
    submitter = submitter_of(cluster)
    if submitter is not None:
        ray["spec"]["submitterPodTemplate"] = submitter
    return [config_map, ray]


MAX_JOB_NAME = 47
"""KubeRay appends to a RayJob's name, and the whole must fit into 63 characters."""


def network_policy(cluster: ClusterConfig) -> dict[str, Any]:
    """Who may reach the cluster's pods: those of its own namespace, KubeRay's submitter among them, and
    KubeRay's operator, wherever it is, which asks the head how a job is."""
    # As Helm labels it, and as kustomize does.
    operator = ({"app.kubernetes.io/name": OPERATOR}, {"app.kubernetes.io/component": OPERATOR})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(cluster, cluster.name),
        "spec": {
            "podSelector": {"matchLabels": {POLICY_LABEL: cluster.name}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [
                        {"podSelector": {}},
                        *(
                            {"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}
                            for labels in operator
                        ),
                    ]
                }
            ],
        },
    }


def job_name(cluster: ClusterConfig, job: JobConfig, submission: str) -> str:
    """CLUSTER-STORE-SUBMISSION, where a person recognises the first two and the last makes it unique."""
    store = re.sub(r"[^a-z0-9]+", "-", job.output.uri.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
    room = MAX_JOB_NAME - len(submission) - 1
    return f"{f'{cluster.name[:20]}-{store}'[:room].strip('-')}-{submission}"


def _cluster_spec(cluster: ClusterConfig, grace_sec: int, *, job_name: str | None) -> dict[str, Any]:
    if not cluster.image:
        raise ConfigError("image is missing; Kubernetes needs one (render --kind dockerfile makes it)")
    reference_of(cluster.image)
    if cluster.kubernetes.restricted and cluster.cache.host_path:
        raise ConfigError(
            f"cache.host_path = {cluster.cache.host_path!r} is a folder of the machine, which a restricted "
            "namespace forbids; set cache.claim or cache.size_gb, or kubernetes.restricted = false"
        )
    _require_labels(cluster)
    head = container_of(cluster, HEAD, resources_of(cluster.head), grace_sec)
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
            **container_rights(cluster),
        }
    return {
        "rayVersion": cluster.ray_version,
        **closed,
        **scaling,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", "metrics-export-port": "8080"},
            "template": merged(
                pod_of(cluster, head, off_spot(cluster), grace_sec, job_name), cluster.kubernetes.head_pod
            ),
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
        maker = cluster.kubernetes.gpu_resource.partition("/")[0]
        if group.gpus and maker == ("nvidia.com" if is_amd(group.accelerator) else "amd.com"):
            raise ConfigError(
                f"group {group.name} has {group.accelerator}, but kubernetes.gpu_resource = "
                f"{cluster.kubernetes.gpu_resource!r} is of another maker, so its pods would never start; "
                "set the one that `kubectl describe node` shows, as amd.com/gpu or nvidia.com/gpu"
            )
        if group.spot and not cluster.kubernetes.spot_label:
            raise ConfigError(
                f"group {group.name} is spot, but kubernetes.spot_label is missing; set it to the label of "
                "your spot nodes, for example 'cloud.google.com/gke-spot=true'"
            )


def _worker_group(cluster: ClusterConfig, group: GroupConfig, grace_sec: int) -> dict[str, Any]:
    resources = resources_of(group)
    pod: dict[str, Any] = {}
    selector: dict[str, str] = {}
    if group.gpus:
        resources[cluster.kubernetes.gpu_resource] = str(group.gpus)
        label = cluster.kubernetes.gpu_labels.get(group.accelerator)
        if label:
            selector[cluster.kubernetes.gpu_label] = label
        # Nodes with parts of GPUs (nvidia.com/mig-...) have the taint of whole ones.
        taint = f"{cluster.kubernetes.gpu_resource.partition('/')[0]}/gpu"
        pod["tolerations"] = [{"key": taint, "operator": "Exists", "effect": "NoSchedule"}]
    if group.spot:
        name, value = spot_label(cluster)
        selector[name] = value
        spot = {"key": name, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        pod["tolerations"] = [*pod.get("tolerations", []), spot]
    else:
        pod |= off_spot(cluster)
    if selector:
        pod["nodeSelector"] = selector
    # KubeRay counts nvidia.com/gpu and the like by itself, and no resource of another name.
    gpus = {"num-gpus": str(group.gpus)} if group.gpus else {}
    least = group.min_count if cluster.kubernetes.autoscale else group.count
    template = pod_of(cluster, container_of(cluster, "ray-worker", resources, grace_sec), pod, grace_sec)
    named = json.dumps(json.dumps({f"group-{group.name}": 1}))  # KubeRay wants JSON inside quotes
    return {
        "groupName": group.name,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": group.count,
        "rayStartParams": {"resources": named, "metrics-export-port": "8080"} | gpus,
        "template": merged(merged(template, cluster.kubernetes.pod), group.pod),
    }


def _metadata(cluster: ClusterConfig, name: str, *, queued: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": cluster.kubernetes.namespace}
    if queued and cluster.kubernetes.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": cluster.kubernetes.queue}
    return merged(metadata, cluster.kubernetes.metadata)
