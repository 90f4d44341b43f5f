"""The small TOML that every description of a cluster is rendered from.

Frozen and checked at once. What a field means stands below it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from logitstore.common.config_file import ConfigError, explain_problem, read_document
from logitstore.common.section import Section

NAME = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"
"""Fits Kubernetes labels, EC2 tags and Ray resource names alike."""


SCRIPTS = ("setup",)
"""Settings that are whole lines of a script; every other text is a word or a line of its own."""


class _OneLineSection(Section):
    @model_validator(mode="after")
    def _of_one_line(self) -> Self:
        """A newline in a setting would begin a line of the description that nobody meant."""
        for name, value in self:
            if name not in SCRIPTS and (text := _unprintable(value)) is not None:
                raise ValueError(
                    f"{name} = {text!r} holds a newline or control character; write it in one line"
                )
        return self


def _unprintable(value: object) -> str | None:
    """The first text in a setting, or in its lists and tables, that is not of one printable line."""
    if isinstance(value, str):
        return None if value.isprintable() else value
    items = (
        [*value, *value.values()]
        if isinstance(value, dict)
        else value
        if isinstance(value, tuple | list)
        else []
    )
    return next((text for item in items if (text := _unprintable(item)) is not None), None)


class HeadConfig(_OneLineSection):
    """The head runs the driver and Ray's own services, never an engine."""

    cores: int = Field(default=4, ge=2)
    """CPU cores."""
    memory_gb: int = Field(default=16, ge=4)
    """Memory; Ray's control store grows with the number of nodes."""
    machine: str = ""
    """The cloud's own name of a machine, instead of one chosen from cores and memory."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """Your price; None takes a rough list price."""


class GroupConfig(_OneLineSection):
    """Machines of one kind. Several groups make a cluster of different GPUs."""

    name: str = Field(pattern=NAME)
    """Also a Ray resource, `group-NAME`, by which a job asks for this group (`workers.resources`)."""
    count: int = Field(ge=1)
    """Most machines."""
    min_count: int = Field(default=0, ge=0)
    """Machines kept while idle; 0 pays nothing between jobs."""
    accelerator: str = ""
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
    price_per_hour: float | None = Field(default=None, ge=0)
    """Your price of one machine; None takes a rough list price."""

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


class OnPremiseConfig(_OneLineSection):
    """Machines of your own, reached by ssh."""

    head_ip: str = ""
    """Address of the head."""
    worker_ips: tuple[str, ...] = ()
    """Addresses of the workers, all of the first group's kind."""
    ssh_user: str = "ubuntu"
    """Who may log in on them."""
    ssh_private_key: str = "~/.ssh/id_ed25519"
    """Path of the key on the machine that runs `ray up`."""


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


class KubernetesConfig(_OneLineSection):
    platform: Literal["", "gke", "karpenter"] = ""
    """Whose node labels `gpu_label`, `gpu_labels` and `spot_label` are where they are not given: Google's, or
    those of Karpenter on AWS; "" takes the defaults below."""
    namespace: str = Field(default="default", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    """Namespace of everything rendered."""
    service_account: str = ""
    """Account whose role gives access to the object store; "" is the namespace's default."""
    secret: str = ""
    """Name of a Secret whose entries become environment variables, for example AWS_ACCESS_KEY_ID."""
    gpu_label: str = "nvidia.com/gpu.product"
    """Node label that tells GPU models apart; its value is `gpu_labels.ACCELERATOR`."""
    gpu_labels: dict[str, str] = Field(default_factory=dict)
    """Node label values by accelerator, for example {A100-80GB = "NVIDIA-A100-SXM4-80GB"}."""
    spot_label: str = ""
    """Node label that marks spot nodes, as "name=value"; "" asks for none."""
    auth: Literal["token", "off"] = "token"
    """"token" lets in only who has the token that KubeRay (1.5.1 or later) keeps in a Secret; "off" lets in
    everybody who reaches the head, who may then run anything on the cluster."""
    network_policy: bool = False
    """Let only pods of this cluster and of its namespace reach its pods; needs a network plugin that knows
    policies."""
    autoscale: bool = True
    """Grow and shrink with what jobs ask for; false starts `count` machines of every group at once, as Kueue
    and other queues that admit a whole job want it."""
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets by which the image may be pulled."""
    priority_class: str = ""
    """Priority class of all pods."""
    queue: str = ""
    """Queue of Kueue (the label kueue.x-k8s.io/queue-name) that admits the cluster or job."""
    pod: dict[str, Any] = Field(default_factory=dict)
    """Merged into the pod template of every worker, for example {spec = {runtimeClassName = "nvidia"}}; lists
    of named items are merged by name, others appended."""
    head_pod: dict[str, Any] = Field(default_factory=dict)
    """Merged into the head's pod template."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Merged into the metadata of everything rendered: labels, annotations."""

    @model_validator(mode="before")
    @classmethod
    def _labels_of_platform(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("platform") not in NODE_LABELS:
            return given
        return {**NODE_LABELS[given["platform"]], **given}


class SlurmConfig(_OneLineSection):
    partition: str = Field(default="", pattern=r"^[A-Za-z0-9._,:@/+-]*$")
    """Partition; "" is the site's default."""
    account: str = Field(default="", pattern=r"^[A-Za-z0-9._,:@/+-]*$")
    """Account to charge; "" is the user's."""
    hours: float = Field(default=4, gt=0)
    """Time limit; a job cut off resumes by submitting the script again."""
    setup: str = ""
    """Shell lines before anything starts, for example loading modules."""
    gpu_types: dict[str, str] = Field(default_factory=dict)
    """The site's names of GPUs by accelerator, for example {H100 = "h100"}, so that a mixed partition gives
    no other."""
    directives: tuple[str, ...] = ()
    """Further lines for sbatch, each starting with "--", for example "--qos=high"; one that the script has
    too replaces it."""
    interface: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    """Network interface whose IPv4 address the nodes use for each other; "" takes the first routable one."""
    scratch: str = Field(default="/tmp", pattern=r"^/[A-Za-z0-9._/-]{0,40}$")
    """Folder on each node for Ray's sockets and logs; short, as a socket's name has at most 107 bytes."""
    container: Literal["", "apptainer"] = ""
    """"apptainer" runs Ray and the job inside `image`; "" runs what is installed on the nodes."""

    @field_validator("directives")
    @classmethod
    def _directives_are_lines(cls, directives: tuple[str, ...]) -> tuple[str, ...]:
        for line in directives:
            if not line.startswith("--") or not line.isprintable():
                raise ValueError(f"{line!r} must be one line that starts with '--', for example '--qos=high'")
        return directives


class AwsConfig(_OneLineSection):
    worker_profile: str = ""
    """Instance profile of the workers, whose role may read and write the store's bucket."""
    machine_image: str = (
        "resolve:ssm:/aws/service/deeplearning/ami/x86_64/"
        "base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
    )
    """Image of the machines, with NVIDIA's driver and Docker; AWS looks this name up when it starts one."""
    node: dict[str, Any] = Field(default_factory=dict)
    """Merged into every machine's description as EC2's RunInstances takes it: SubnetIds, SecurityGroupIds,
    KeyName, Placement, TagSpecifications."""


class GcpConfig(_OneLineSection):
    project: str = ""
    """Project id."""
    zone: str = ""
    """Zone within the region, for example "us-central1-a"."""
    worker_account: str = ""
    """E-mail address of the workers' service account, which may read and write the store's bucket."""
    machine_image: str = (
        "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"
    )
    """Image of the machines, with NVIDIA's driver and Docker."""
    disk_type: str = "pd-balanced"
    """Kind of the boot disks; newer machines want "hyperdisk-balanced". GPU machines refuse "pd-standard"."""
    node: dict[str, Any] = Field(default_factory=dict)
    """Merged into every machine's description as Compute Engine's instances.insert takes it:
    networkInterfaces, labels, reservationAffinity."""


class CacheConfig(_OneLineSection):
    """Where Hugging Face's cache is, so that a machine's weights are not fetched again by every container. At
    most one of the three; the image's user must be able to write there."""

    claim: str = ""
    """Kubernetes: name of a PersistentVolumeClaim that all pods may write to (ReadWriteMany)."""
    host_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._/-]+)?$")
    """Folder of every machine, such as a mounted NVMe disk: in pods, and in the containers of `ray up`."""
    size_gb: int = Field(default=0, ge=0)
    """Kubernetes: scratch of each pod of so many GB, asked for as ephemeral storage; it goes with the pod."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [name for name in ("claim", "host_path", "size_gb") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given, and the cache is in one place; keep one")
        return self

    @property
    def is_set(self) -> bool:
        return bool(self.claim or self.host_path or self.size_gb)


class DockerConfig(_OneLineSection):
    """Containers of `ray up`: Ray passes nothing of a machine's environment on to them."""

    env_file: str = ""
    """File on every machine with NAME=VALUE lines for the container: HF_TOKEN, AWS_ACCESS_KEY_ID, ..."""
    run_options: tuple[str, ...] = ()
    """Further options of `docker run`, for example "-v /mnt/models:/home/ray/.cache/huggingface"."""


class ClusterConfig(_OneLineSection):
    """A cluster for labeling jobs."""

    name: str = Field(pattern=NAME)
    """Names the cluster and everything it makes."""
    image: str = ""
    """Container image with this project and vLLM installed (`render --kind dockerfile` makes one)."""
    region: str = "us-east-1"
    """Region of AWS; GCP's follows from `gcp.zone`."""
    python: str = "python"
    """Interpreter with this project, in the image or on the machines."""
    ray_version: str = Field(default="2.60.0", pattern=r"^[0-9A-Za-z.+-]+$")
    """Ray of the image; the client that submits should have the same."""
    idle_minutes: int = Field(default=10, ge=1)
    """Idle machines are given back after this."""
    disk_gb: int = Field(default=200, ge=50)
    """Disk of a cloud's machine: the image and the teacher's weights."""
    currency: str = "USD"
    """Of the prices."""
    head: HeadConfig = HeadConfig()
    groups: Annotated[tuple[GroupConfig, ...], Field(min_length=1)]
    on_premise: OnPremiseConfig = OnPremiseConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    slurm: SlurmConfig = SlurmConfig()
    aws: AwsConfig = AwsConfig()
    gcp: GcpConfig = GcpConfig()
    docker: DockerConfig = DockerConfig()
    cache: CacheConfig = CacheConfig()

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
        problems = [explain_problem(problem, ClusterConfig, what="cluster") for problem in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(problems)}") from None
