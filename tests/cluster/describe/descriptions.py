"""Clusters and a job that the tests of descriptions share."""

from __future__ import annotations

from typing import Any

from cluster.describe.settings.cluster import ClusterConfig
from labeler.config.loading import JobConfig

TWO_KINDS = {
    "name": "distill",
    "image": "registry.example/penumbra:1",
    "groups": [
        {"name": "l4", "count": 4, "accelerator": "L4", "gpus": 4, "cores": 48, "spot": True},
        {"name": "h100", "count": 2, "min_count": 1, "accelerator": "H100", "gpus": 8, "cores": 192},
    ],
    "aws": {"worker_profile": "labeler"},
    "gcp": {"project": "a-project", "zone": "us-central1-a", "worker_account": "labeler@a-project.example"},
    "kubernetes": {
        "namespace": "distill",
        "service_account": "labeler",
        "secret": "store-keys",
        "gpu_labels": {"L4": "NVIDIA-L4", "H100": "NVIDIA-H100-80GB-HBM3"},
        "spot_label": "cloud.example/spot=true",
    },
}


ONE_KIND = TWO_KINDS | {
    "groups": TWO_KINDS["groups"][:1],
    "on_premise": {"head_ip": "10.0.0.1", "worker_ips": [f"10.0.0.{i}" for i in range(2, 6)]},
    "slurm": {"partition": "gpu", "account": "lab", "hours": 1.5, "setup": "module load cuda"},
}


def two_kinds(**changes: Any) -> ClusterConfig:
    return ClusterConfig.model_validate(TWO_KINDS | changes)


def one_kind(**changes: Any) -> ClusterConfig:
    return ClusterConfig.model_validate(ONE_KIND | changes)


def a_job(replicas: int = 8, gpus: float = 2, tensor_parallel: int = 2, **workers: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "teacher": {
                "model": "org/teacher",
                "tensor_parallel_size": tensor_parallel,
                "pipeline_parallel_size": workers.get("machines", 1),
            },
            "input": {"uri": "s3://bucket/prompts.jsonl", "kind": "text"},
            "output": {"uri": "s3://bucket/store"},
            "workers": {"replicas": replicas, "gpus": gpus} | workers,
        }
    )


CORES = {"l4": 48, "h100": 192}


def comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("#"))


def pod_templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def validate_pod(template: dict[str, Any]) -> None:
    """Kubernetes' own schema, strict: a field that it does not know is an error."""
    import kubernetes_validate

    metadata = template.get("metadata", {}) | {"name": "pod"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    kubernetes_validate.validate(pod, "1.33", strict=True)
