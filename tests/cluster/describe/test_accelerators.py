"""Accelerators by their names: what is known of them, what others call them, and which fit nowhere."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.util.accelerators import accelerators

from cluster.describe.fit.placement import check_placement
from cluster.describe.render import render
from cluster.describe.settings.accelerators import (
    GB_OF_GIB,
    MEMORY_GIB,
    NAMES_OF_SKYPILOT,
    is_amd,
    known_memory_gb,
)
from cluster.describe.settings.cluster import ClusterConfig, Kind
from labeler.config.loading import JobConfig, TeacherConfig
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import ONE_KIND, TWO_KINDS, a_job

pytestmark = pytest.mark.slow  # Kubernetes' schemas and SkyPilot's take seconds to load


def with_gpu(accelerator: str, **changes: Any) -> ClusterConfig:
    group = ONE_KIND["groups"][0] | {"accelerator": accelerator, "spot": False}
    return ClusterConfig.model_validate(ONE_KIND | {"groups": [group]} | changes)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("h100", "write it as 'H100'"),
        ("NVIDIA H100", "write it as 'H100'"),
        ("a100-80gb", "write it as 'A100-80GB'"),
        ("A100 80GB", "write it as 'A100-80GB'"),
        ("nvidia-l40s", "write it as 'L40S'"),
        ("mi300x", "write it as 'MI300X'"),
        ("A100", "write 'A100-40GB' or 'A100-80GB'"),
        ("A100-80G", "write it as 'A100-80GB'"),
        ("NVIDIA-A100-SXM4-80GB", "write it as 'A100-80GB'"),
        ("nvidia-tesla-a100", "write 'A100-40GB' or 'A100-80GB'"),
        ("H100-80GB", "write it as 'H100'"),
        ("NVIDIA H100 PCIe", "write it as 'H100'"),
        ("Tesla-V100-SXM2-32GB", "write it as 'V100-32GB'"),
        ("V100-16GB", "write it as 'V100'"),
        ("nvidia-tesla-t4", "write it as 'T4'"),
        ("AMD-Instinct-MI300X-OAM", "write it as 'MI300X'"),
        ("Intel-GAUDI", "is no GPU, and the labeler's engine"),
        ("tpu-v5e-8", "is no GPU, and the labeler's engine"),
    ],
)
def test_another_spelling_would_be_a_gpu_that_nothing_is_known_of(name: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        with_gpu(name)


def test_a_gpu_that_nobody_here_knows_may_be_named() -> None:
    for name in ("B300", "RTX-PRO-6000", "GB200", *MEMORY_GIB):
        assert with_gpu(name).groups[0].accelerator == name


def test_rays_own_names_are_known_by_their_memory_and_maker() -> None:
    names = {name for name in vars(accelerators).values() if isinstance(name, str)}
    known = {name: (known_memory_gb(name) or 0) / GB_OF_GIB for name in names}
    assert {name: round(size, 6) for name, size in known.items() if size} == {
        "A100": 40, "A100-40G": 40, "A100-80G": 80, "A10G": 24, "B200": 180, "H100": 80, "H200": 141, "L4": 24,
        "L40S": 48, "T4": 16, "V100": 16, "AMD-Instinct-MI300X-OAM": 192, "AMD-Instinct-MI325X-OAM": 256,
    }  # fmt: skip
    assert {name for name in names if is_amd(name)} == {name for name in names if name.startswith("AMD-")}
    assert is_amd("mi250x")
    assert is_amd("AMD MI250")


def test_skypilot_is_told_its_own_names() -> None:
    """Its catalog has no A100-40GB: the task would have waited for a machine that no cloud has."""
    task = yaml.safe_load(render(with_gpu("A100-40GB"), "skypilot", a_job(), job_file="job.toml"))
    assert task["resources"]["accelerators"] == {"A100": 4}
    package = find_spec("sky")
    assert package is not None
    assert package.origin is not None
    known = (Path(package.origin).parent / "utils" / "gpu_names.py").read_text(encoding="utf-8")
    assert "'A100': 40," in known
    for name in (
        "T4",
        "V100",
        "V100-32GB",
        "L4",
        "L40S",
        "A10G",
        "A100-80GB",
        "H100",
        "H200",
        "B200",
        "GH200",
    ):
        assert f"'{NAMES_OF_SKYPILOT.get(name, name)}'" in known


def a_teacher(folder: Path, num_layers: int) -> JobConfig:
    """Of 0.47 GB a layer, on one GPU."""
    config = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 14336, "vocab_size": 1000}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": num_layers}))
    teacher = TeacherConfig.model_validate({"model": str(folder), "max_model_len": 2048})
    return a_job(replicas=1, gpus=1, tensor_parallel=1).model_copy(update={"teacher": teacher})


PLACES: list[tuple[str, Kind, str]] = [
    ("nvidia.com/gpu", "kuberay-cluster", ""),
    ("nvidia.com/mig-3g.40gb", "kuberay-cluster", "a GPU of group l4 has 42.9 GB"),
    ("nvidia.com/mig-1g.10gb.me", "kuberay-job", "a GPU of group l4 has 10.7 GB"),
    ("nvidia.com/mig-3g.40gb", "ray-aws", ""),
]


@pytest.mark.parametrize(("resource", "kind", "refused"), PLACES)
def test_a_part_of_a_gpu_has_a_part_of_its_memory(
    tmp_path: Path, resource: str, kind: Kind, refused: str
) -> None:
    job = a_teacher(tmp_path, 110)
    cluster = with_gpu("H100", kubernetes=TWO_KINDS["kubernetes"] | {"gpu_resource": resource})
    if refused:
        with pytest.raises(ConfigError, match=f"{refused}, but the teacher's weights"):
            check_placement(cluster, job, {"l4": 48}, disk_kind=kind)
    else:
        assert check_placement(cluster, job, {"l4": 48}, disk_kind=kind)


@pytest.mark.parametrize(("accelerator", "resource"), [("MI300X", "nvidia.com/gpu"), ("H100", "amd.com/gpu")])
def test_pods_that_ask_for_another_makers_gpus_would_never_start(accelerator: str, resource: str) -> None:
    cluster = with_gpu(accelerator, kubernetes=TWO_KINDS["kubernetes"] | {"gpu_resource": resource})
    with pytest.raises(ConfigError, match="is of another maker, so its pods would never start"):
        render(cluster, "kuberay-cluster", None, job_file="job.toml")


def test_amds_gpus_get_no_image_of_cuda_and_their_own_option_of_apptainer() -> None:
    with pytest.raises(ConfigError, match="is AMD's, and this image is for NVIDIA's GPUs"):
        render(with_gpu("MI300X"), "dockerfile", None, job_file="job.toml")
    for accelerator, option in (("MI300X", "--rocm"), ("H100", "--nv")):
        cluster = with_gpu(accelerator, slurm={"container": "apptainer"})
        text = render(cluster, "slurm", None, job_file="job.toml")
        assert f"apptainer exec {option} --bind" in text
