"""The small TOML that every description of a cluster is rendered from.

Frozen and checked at once. What a field means stands below it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from cluster.describe.settings.accelerators import check_accelerator
from cluster.describe.settings.interpreter import check_interpreter
from cluster.describe.settings.kubernetes import KubernetesConfig
from cluster.describe.settings.no_secrets import places_of_secrets
from cluster.describe.settings.one_line import OneLineSection
from cluster.describe.settings.places import (
    AwsConfig,
    CacheConfig,
    DockerConfig,
    GcpConfig,
    OnPremiseConfig,
    SkypilotConfig,
    SlurmConfig,
)
from logitstore.common.config_file import ConfigError, explain_problem, read_document
from logitstore.common.section import of_form

Name = Annotated[
    str,
    of_form(
        r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?",
        "a name has at most 40 small letters, digits and '-', with a letter first and no '-' at its end; "
        "write it so, for example 'h100-spot'",
    ),
]
"""Fits Kubernetes labels, EC2 tags and Ray resource names alike."""


class HeadConfig(OneLineSection):
    """The head runs the driver and Ray's own services, never an engine."""

    cores: int = Field(default=4, ge=2)
    """CPU cores."""
    memory_gb: int = Field(default=16, ge=4)
    """Memory; Ray's control store grows with the number of nodes."""
    machine: str = ""
    """The cloud's own name of a machine, instead of one chosen from cores and memory."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """Your price; None takes a rough list price."""


class GroupConfig(OneLineSection):
    """Machines of one kind. Several groups make a cluster of different GPUs."""

    name: Name
    """Also a Ray resource, `group-NAME`, by which a job asks for this group (`workers.resources`)."""
    count: int = Field(ge=1)
    """Most machines."""
    min_count: int = Field(default=0, ge=0)
    """Machines kept while idle; 0 pays nothing between jobs."""
    accelerator: Annotated[str, AfterValidator(check_accelerator)] = ""
    """GPU model, for example "L4", "A100-80GB", "H100"; "" is a CPU machine."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of each machine."""
    cores: int = Field(default=8, ge=1)
    """CPU cores of each machine; clouds choose their own with a GPU, Kubernetes keeps a tenth for itself."""
    memory_gb: int = Field(default=32, ge=2)
    """Memory of each machine; Slurm is asked for all of it, Kubernetes keeps some for itself."""
    spot: bool = False
    """Machines that may be taken away at any time for a lower price; the labeler survives it."""
    machine: str = ""
    """The cloud's own name of a machine, instead of one chosen from the accelerator and its number."""
    gpu_memory_gb: float | None = Field(default=None, gt=0)
    """Memory of one GPU in GB (10^9 bytes); None takes what the accelerator is known to have."""
    disk_gb: int | None = Field(default=None, ge=50)
    """Disk of each machine, where image and weights lie. None is the cluster's `disk_gb` where machines are
    rented; elsewhere it is not known, and whether the weights fit is not checked."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """Your price of one machine; None takes a rough list price."""

    pod: dict[str, Any] = Field(default_factory=dict)
    """Merged into the pod template of this group's workers, after `kubernetes.pod`."""
    aws_node: dict[str, Any] = Field(default_factory=dict)
    """Merged into this group's machines after `aws.node`, for example for a capacity block
    {InstanceMarketOptions = {MarketType = "capacity-block"}}."""
    gcp_node: dict[str, Any] = Field(default_factory=dict)
    """Merged into this group's machines after `gcp.node`."""

    @model_validator(mode="after")
    def _consistent(self) -> GroupConfig:
        if bool(self.accelerator) != bool(self.gpus):
            raise ValueError(
                f"accelerator = {self.accelerator!r} with gpus = {self.gpus}: give both for a GPU machine, "
                "neither for a CPU machine"
            )
        if self.min_count > self.count:
            raise ValueError(f"min_count = {self.min_count} is above count = {self.count}; lower it")
        return self


class ClusterConfig(OneLineSection):
    """A cluster for labeling jobs."""

    name: Name
    """Names the cluster and everything it makes."""
    image: str = ""
    """Container image with this project and vLLM installed (`render --kind dockerfile` makes one)."""
    region: str = "us-east-1"
    """Region of AWS; GCP's follows from `gcp.zone`."""
    python: Annotated[str, AfterValidator(check_interpreter)] = "python"
    """Interpreter with this project, in the image or on the machines."""
    ray_version: Annotated[
        str,
        of_form(
            r"[0-9A-Za-z.+-]+", "a version has digits, letters, '.', '+' and '-', as 2.60.0; write it so"
        ),
    ] = "2.60.0"
    """Ray of the image; the client that submits should have the same."""
    idle_minutes: int = Field(default=10, ge=1)
    """Idle machines are given back after this."""
    disk_gb: int = Field(default=200, ge=50)
    """Disk of a cloud's machine: the image and the teacher's weights."""
    currency: str = "USD"
    """Currency of the prices."""
    head: HeadConfig = HeadConfig()
    groups: Annotated[tuple[GroupConfig, ...], Field(min_length=1)]
    on_premise: OnPremiseConfig = OnPremiseConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    slurm: SlurmConfig = SlurmConfig()
    skypilot: SkypilotConfig = SkypilotConfig()
    aws: AwsConfig = AwsConfig()
    gcp: GcpConfig = GcpConfig()
    docker: DockerConfig = DockerConfig()
    cache: CacheConfig = CacheConfig()

    @model_validator(mode="after")
    def _disks_are_mounted(self) -> ClusterConfig:
        if self.gcp.local_ssds and not self.cache.host_path:
            raise ValueError(
                f"gcp.local_ssds = {self.gcp.local_ssds} are mounted nowhere; set cache.host_path, for "
                'example "/mnt/nvme/huggingface", or ask for none'
            )
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> ClusterConfig:
        place = next(places_of_secrets(self.model_dump()), None)
        if place is not None:
            raise ValueError(
                f"{place} holds a secret, which would stand in every file that is rendered; name where it is "
                "instead: kubernetes.secret (or valueFrom with a secretKeyRef), docker.env_file, or a "
                "variable of the environment as $NAME"
            )
        return self

    @model_validator(mode="after")
    def _distinct(self) -> ClusterConfig:
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names) or "head" in names:
            raise ValueError(f"groups are named {names}; names must differ, and none may be 'head'")
        return self


Kind = Literal[
    "ray-aws",
    "ray-gcp",
    "ray-on-premise",
    "kuberay-cluster",
    "kuberay-job",
    "slurm",
    "skypilot",
    "dockerfile",
    "grafana",
    "prometheus",
]


def load_cluster(path: str) -> ClusterConfig:
    """The checked description. Raises ConfigError: the value, the rule, the remedy."""
    document = read_document(path, what="cluster")
    try:
        return ClusterConfig.model_validate(document)
    except ValidationError as error:
        found = [one for one in error.errors() if one["type"] != "too_short" or not one["input"]]
        problems = [explain_problem(problem, ClusterConfig, what="cluster") for problem in found]
        raise ConfigError(f"{path}: {'; '.join(problems)}") from None
