"""Sections of the places other than Kubernetes, and of what several of them share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from cluster.describe.settings.kubernetes_names import ObjectName
from cluster.describe.settings.node_paths import check_mount, check_plain_path
from cluster.describe.settings.one_line import OneLineSection
from cluster.describe.settings.slurm_lines import check_directive
from logitstore.common.section import of_form

SlurmWord = Annotated[
    str,
    of_form(
        r"[A-Za-z0-9._,:@/+-]*",
        "a name of Slurm is one word of letters, digits and any of '._,:@/+-'; write what `sinfo` or "
        "`sacctmgr` shows",
    ),
]


class OnPremiseConfig(OneLineSection):
    """Machines of your own, reached by ssh."""

    head_ip: str = ""
    """Address of the head."""
    worker_ips: tuple[str, ...] = ()
    """Addresses of the workers, all of the first group's kind."""
    ssh_user: Annotated[
        str,
        of_form(
            r"[A-Za-z0-9_][A-Za-z0-9._@\\-]*",
            "who logs in is one word of letters, digits and any of '._@\\-', not first '-'; write what "
            "`ssh USER@MACHINE` takes",
        ),
    ] = "ubuntu"
    """Who may log in on them."""
    ssh_private_key: Annotated[
        str,
        of_form(
            r"[^-$][^$]*",
            "the key is a path, which may begin with '~/' and names no variable, as Ray puts none in; write "
            "it whole",
        ),
    ] = "~/.ssh/id_ed25519"
    """Path of the key on the machine that runs `ray up`."""


class SlurmConfig(OneLineSection):
    """What a Slurm site wants to be told."""

    partition: SlurmWord = ""
    """Partition; "" is the site's default."""
    account: SlurmWord = ""
    """Account to charge; "" is the user's."""
    hours: float = Field(default=4, gt=0)
    """Time limit; a job cut off resumes by submitting the script again."""
    setup: str = ""
    """Shell lines before anything starts, for example loading modules."""
    gpu_types: dict[str, SlurmWord] = Field(default_factory=dict)
    """The site's names of GPUs by accelerator, for example {H100 = "h100"}, so that a mixed partition gives
    no other."""
    directives: tuple[Annotated[str, AfterValidator(check_directive)], ...] = ()
    """Further lines for sbatch, each starting with "--", for example "--qos=high"; one that the script has
    too, under this name or another ("--mem-per-cpu", "--gres=gpu:4", "--no-requeue"), replaces it. What
    settings say (--nodes, --time, --array, --signal) is refused, as are other cores and GPUs than the
    group's."""
    interface: Annotated[
        str,
        of_form(r"[A-Za-z0-9._-]*", "a network interface is one word, as ib0; write what `ip link` shows"),
    ] = ""
    """Network interface whose IPv4 address the nodes use for each other; "" takes the first routable one."""
    scratch: Annotated[str, AfterValidator(check_plain_path)] = "/tmp"
    """Folder on each node for Ray's sockets and logs, which may begin with `~/` and name variables of the
    nodes, as `$TMPDIR`; short, as a socket's name has at most 107 bytes."""
    container: Literal["", "apptainer", "pyxis"] = ""
    """Runs Ray and the job inside `image`: by the program "apptainer", or by "pyxis", Slurm's plugin of
    enroot; "" runs what is installed on the nodes."""
    mounts: tuple[Annotated[str, AfterValidator(check_mount)], ...] = ()
    """Folders of the nodes that a container sees besides the one the job is sent from and `cache.host_path`,
    as "/path" or "/path/outside:/path/inside"; each may begin with `~/` and name variables of the nodes."""
    array: int = Field(default=0, ge=0, le=1000)
    """Parts of the input, each labeled into a store of its own by a task of one machine of an array, `count`
    of them at once: small allocations wait less. `penumbra store merge` joins the stores. 0 is one job over
    `count` machines."""

    @model_validator(mode="after")
    def _mounts_need_a_container(self) -> Self:
        if self.mounts and not self.container:
            raise ValueError(f"mounts = {list(self.mounts)} need slurm.container; set it or remove them")
        return self


class AwsConfig(OneLineSection):
    """Machines rented from AWS by `ray up`."""

    worker_profile: str = ""
    """Instance profile of the workers, whose role may read and write the store's bucket."""
    machine_image: str = (
        "resolve:ssm:/aws/service/deeplearning/ami/x86_64/"
        "base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
    )
    """Image of the machines, with NVIDIA's driver and Docker; AWS looks this name up when it starts one."""
    disk_mb_per_sec: int = Field(default=500, ge=125, le=750)
    """Throughput of the disks, in 2^20 bytes a second, for reading weights; AWS gives 125 for nothing."""
    node: dict[str, Any] = Field(default_factory=dict)
    """Merged into every machine's description as EC2's RunInstances takes it: SubnetIds, SecurityGroupIds,
    KeyName, Placement, TagSpecifications."""


class GcpConfig(OneLineSection):
    """Machines rented from Google by `ray up`."""

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
    local_ssds: int = Field(default=0, ge=0, le=32)
    """Local NVMe disks of 375 GB to ask for on each worker, joined and mounted at `cache.host_path`. Machines
    that always bring their own (A3 and later) need 0: theirs are mounted there too."""
    node: dict[str, Any] = Field(default_factory=dict)
    """Merged into every machine's description as Compute Engine's instances.insert takes it:
    networkInterfaces, labels, reservationAffinity."""


class SkypilotConfig(OneLineSection):
    """A task of SkyPilot."""

    task: dict[str, Any] = Field(default_factory=dict)
    """Merged into the task as SkyPilot takes it: {resources = {infra = "aws/us-east-1", labels = {...}},
    file_mounts, config}."""


class CacheConfig(OneLineSection):
    """Where Hugging Face's cache is, so that a machine's weights are not fetched again by every container. At
    most one of them."""

    claim: ObjectName = ""
    """Kubernetes: name of a PersistentVolumeClaim that all pods, and the image's user, may write to
    (ReadWriteMany)."""
    host_path: str = ""
    """Folder of every machine, such as a mounted NVMe disk: Kubernetes, `ray up` and Slurm; it is made where
    it is missing, and on the first two opened to every user. A machine's processes wait for the first to
    fetch the weights, and read them from there. On Slurm it may begin with `~/` and name variables of the
    nodes, as `$SCRATCH/hf`."""
    size_gb: int = Field(default=0, ge=0)
    """Scratch of so many GB, which goes with the pod or job. Kubernetes: ephemeral storage of each worker;
    Slurm: disk in `slurm.scratch` (`--tmp`, which a site that gives its nodes no TmpDisk refuses: set
    `slurm.directives = ["--tmp=0"]` there); SkyPilot: added to each machine's disk."""
    bucket: Annotated[
        str,
        of_form(
            r"((s3|gs|r2|https)://[A-Za-z0-9._/-]+)?",
            "a bucket is s3://NAME/PATH, or so with gs, r2 or https, in letters, digits, '.', '_', '-' and "
            "'/'; write it so",
        ),
    ] = ""
    """SkyPilot: a bucket, s3://NAME/PATH or gs://NAME/PATH, that all machines mount and keep a copy of what
    they read: other machines and later tasks find the weights there."""
    offline: bool = False
    """The model is in the cache already and nothing is fetched (HF_HUB_OFFLINE=1), for machines without
    internet."""

    @field_validator("host_path")
    @classmethod
    def _host_path_is_a_path(cls, path: str) -> str:
        return check_plain_path(path) if path else path

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = self._places
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given, and the cache is in one place; keep one")
        if self.offline and given in ([], ["size_gb"]):
            raise ValueError(
                "offline = true needs a place where the model is already, and scratch is empty; set claim, "
                "host_path or bucket"
            )
        return self

    @property
    def given(self) -> str:
        """The setting that names the place; "" for none."""
        return next(iter(self._places), "")

    @property
    def _places(self) -> list[str]:
        return [name for name in ("claim", "host_path", "size_gb", "bucket") if getattr(self, name)]

    def environment(self, folder: str) -> dict[str, str]:
        """Variables of the processes to which the cache is `folder`."""
        return {"HF_HOME": folder} | ({"HF_HUB_OFFLINE": "1"} if self.offline else {})


class DockerConfig(OneLineSection):
    """Containers of `ray up`: Ray passes nothing of a machine's environment on to them."""

    env_file: str = ""
    """File on every machine with NAME=VALUE lines for the container: HF_TOKEN, AWS_ACCESS_KEY_ID, ... `~` is
    the home of the user who is logged in there."""
    run_options: tuple[str, ...] = ()
    """Further options of `docker run`, for example "-v /mnt/models:/home/ray/.cache/huggingface"."""
