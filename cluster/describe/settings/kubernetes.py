"""`[kubernetes]`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster.describe.settings.kubernetes_names import Label, LabelName, LabelValue, Namespace, ObjectName
from cluster.describe.settings.one_line import OneLineSection

NODE_LABELS: dict[str, dict[str, Any]] = {
    "gke": {
        "gpu_label": "cloud.google.com/gke-accelerator",
        "gpu_labels": {
            "T4": "nvidia-tesla-t4", "L4": "nvidia-l4", "A100-40GB": "nvidia-tesla-a100",
            "A100-80GB": "nvidia-a100-80gb", "H100": "nvidia-h100-80gb", "H200": "nvidia-h200-141gb",
        },
        "spot_label": "cloud.google.com/gke-spot=true",
    },
    "karpenter": {
        "gpu_label": "karpenter.k8s.aws/instance-gpu-name",
        "gpu_labels": {
            "T4": "t4", "A10G": "a10g", "L4": "l4", "L40S": "l40s", "A100-40GB": "a100", "H100": "h100",
            "H200": "h200",
        },
        "spot_label": "karpenter.sh/capacity-type=spot",
    },
}  # fmt: skip
"""Node labels that a platform's autoscaler knows before there is a node, so that groups start from none."""


class KubernetesConfig(OneLineSection):
    """A cluster or job of KubeRay."""

    platform: Literal["", "gke", "karpenter"] = ""
    """Whose node labels `gpu_label`, `gpu_labels` and `spot_label` are where they are not given: Google's, or
    those of Karpenter on AWS; "" takes the defaults below."""
    namespace: Namespace = "default"
    """Namespace of everything rendered."""
    service_account: ObjectName = ""
    """Account whose role gives access to the object store; "" is the namespace's default."""
    secret: ObjectName = ""
    """Name of a Secret whose entries become environment variables, for example AWS_ACCESS_KEY_ID."""
    gpu_label: LabelName = "nvidia.com/gpu.product"
    """Node label that tells GPU models apart; its value is `gpu_labels.ACCELERATOR`."""
    gpu_labels: dict[str, LabelValue] = Field(default_factory=dict)
    """Node label values by accelerator, for example {A100-80GB = "NVIDIA-A100-SXM4-80GB"}."""
    gpu_resource: LabelName = "nvidia.com/gpu"
    """What a pod asks for to get a GPU, for example "amd.com/gpu", or "nvidia.com/mig-3g.40gb" for parts of
    one."""
    spot_label: Label = ""
    """Node label that marks spot nodes, as "name=value"; "" asks for none."""
    auth: Literal["token", "off"] = "token"
    """"token" lets in only who has the token that KubeRay (1.5.1 or later) keeps in a Secret; "off" lets in
    everybody who reaches the head, who may then run anything on the cluster."""
    network_policy: bool = False
    """Let only pods of the namespace, and KubeRay's operator, reach the cluster's pods; needs a network
    plugin that knows policies."""
    autoscale: bool = True
    """Grow and shrink with what jobs ask for; false starts `count` machines of every group at once, as Kueue
    and other queues that admit a whole job want it."""
    pull_secrets: tuple[ObjectName, ...] = ()
    """Names of Secrets by which the image may be pulled."""
    priority_class: ObjectName = ""
    """Priority class of all pods."""
    restricted: bool = False
    """For a namespace that enforces the level "restricted": pods run as the user 1000, as the rendered
    Dockerfile's image does, without further rights."""
    queue: str = ""
    """Queue of Kueue (the label kueue.x-k8s.io/queue-name) that admits the cluster or job. Volcano's are
    labels of `metadata`: {"ray.io/scheduler-name" = "volcano", "volcano.sh/queue-name" = "..."}."""
    pod: dict[str, Any] = Field(default_factory=dict)
    """Merged into the pod template of every worker, for example {spec = {runtimeClassName = "nvidia"}}; lists
    of named items are merged by name, others appended."""
    head_pod: dict[str, Any] = Field(default_factory=dict)
    """Merged into the head's pod template."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Merged into the metadata of everything rendered: labels, annotations."""

    @field_validator("metadata")
    @classmethod
    def _names_are_ours(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        for name in ("name", "generateName", "namespace"):
            if name in metadata:
                raise ValueError(
                    f"{name} = {metadata[name]!r} would be that of everything rendered, and of every job; "
                    "set the cluster's name and kubernetes.namespace, and labels or annotations here"
                )
        return metadata

    @model_validator(mode="before")
    @classmethod
    def _labels_of_platform(cls, given: Any) -> Any:
        platform = given.get("platform") if isinstance(given, dict) else None
        return {**NODE_LABELS.get(platform, {}), **given} if isinstance(platform, str) else given
