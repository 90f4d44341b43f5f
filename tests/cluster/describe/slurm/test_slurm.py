"""The batch script for Slurm: what sbatch is told, containers and arrays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.describe.render import render
from cluster.describe.slurm.container import pyxis_image
from cluster.describe.slurm.script import script
from cluster.errors import JobRefusedError
from labeler.config.loading import load_job
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import a_job, one_kind
from tests.cluster.describe.slurm.stub_slurm import assert_bash

pytestmark = pytest.mark.slow  # shellcheck


def test_the_slurm_script_is_bash_and_drains_before_the_time_is_up(tmp_path: Path) -> None:
    text = render(one_kind(), "slurm", a_job(drain_sec=100), job_file="runs/my job.toml")
    assert text.startswith("#!/bin/bash\n")
    assert_bash(tmp_path, text)
    head = text.split("set -euo pipefail")[0]
    for directive in (
        "--nodes=4",
        "--gpus-per-node=4",
        "--signal=B:TERM@160",
        "--time=01:30:00",
        "--partition=gpu",
        "--account=lab",
        "--open-mode=append",
    ):
        assert f"#SBATCH {directive}\n" in head
    assert "'runs/my job.toml'" in text


@pytest.mark.parametrize(
    "changed",
    ['output.storage_options={key="AKIA", secret="hunter2"}', "input.uri=https://me:hunter2@host/in.jsonl"],
)
def test_no_secret_stands_in_the_script(changed: str) -> None:
    """Slurm keeps the script, and each user of a node sees the arguments of its processes."""
    with pytest.raises(JobRefusedError, match=r"is a secret|a user name or password") as refused:
        script(one_kind(), "job.toml", a_job(), [changed])
    assert "hunter2" not in str(refused.value)


def test_what_a_slurm_site_demands_can_be_said(tmp_path: Path) -> None:
    slurm = {
        "gpu_types": {"L4": "l4"},
        "directives": ["--qos=high", "--mem=0", "--constraint=nvlink"],
        "interface": "ib0",
        "container": "apptainer",
    }
    text = render(one_kind(slurm=slurm), "slurm", None, job_file="job.toml")
    head, body = text.split("set -euo pipefail")
    assert "#SBATCH --gpus-per-node=l4:4\n" in head
    assert head.count("--mem=") == 1
    assert all(f"#SBATCH {line}\n" in head for line in slurm["directives"])
    assert "ip -4 -o addr show dev ib0" in body
    assert len(re.findall(r"apptainer exec --nv .*? docker://registry", body)) == 4
    assert_bash(tmp_path, text)
    for wrong in ("qos=high", "--a\nrm -rf /"):
        with pytest.raises(ValidationError, match="one line that starts with"):
            one_kind(slurm={"directives": [wrong]})


@pytest.mark.parametrize("container", ["", "apptainer", "pyxis"])
@pytest.mark.parametrize("cache", [{}, {"host_path": "/nvme/hf"}, {"size_gb": 200}])
@pytest.mark.parametrize("array", [0, 8])
def test_containers_caches_and_arrays_in_any_mixture_are_bash(
    tmp_path: Path, container: str, cache: dict[str, Any], array: int
) -> None:
    slurm: dict[str, Any] = {"container": container, "array": array}
    if container:
        slurm["mounts"] = ["/data", "/scratch/my-models:/models"]
    text = render(one_kind(slurm=slurm, cache=cache), "slurm", a_job(), job_file="my job.toml")
    assert_bash(tmp_path, text)
    head, body = text.split("set -euo pipefail")
    assert ("--tmp=200G" in head) == ("size_gb" in cache)
    assert ("export HF_HOME=" in body) == bool(cache)
    assert ("--array=0-7%4" in head) == bool(array)
    if container == "pyxis":
        assert "--container-image='registry.example#penumbra:1'" in body
        assert ',/data:/data,/scratch/my-models:/models"\n' in body
        assert (",$HF_HOME:$HF_HOME," in body) == ("host_path" in cache)
    if container == "apptainer":
        assert '--bind "/scratch/my-models:/models"' in body


@pytest.mark.parametrize(
    ("image", "written"),
    [
        ("registry.example/team/penumbra:1", "registry.example#team/penumbra:1"),
        ("docker://ghcr.io/a/b:2", "ghcr.io#a/b:2"),
        ("localhost/a:1", "localhost#a:1"),
        ("host:5000/a:1", "host:5000#a:1"),
        ("team/penumbra:1", "team/penumbra:1"),
        ("penumbra", "penumbra"),
        ("/images/penumbra.sqsh", "/images/penumbra.sqsh"),
    ],
)
def test_an_image_is_named_as_enroot_names_it(image: str, written: str) -> None:
    assert pyxis_image(image) == written


@pytest.mark.parametrize(
    ("slurm", "says"),
    [
        ({"mounts": ["/data"]}, "need slurm.container"),
        ({"container": "pyxis", "mounts": ["data"]}, "mounts"),
        ({"container": "pyxis", "mounts": ["/a,/b"]}, "mounts"),
        ({"container": "pyxis", "mounts": ["/$(touch x)"]}, "mounts"),
        ({"container": "enroot"}, "container"),
        ({"array": -1}, "array"),
    ],
)
def test_containers_and_arrays_that_cannot_be_are_refused(slurm: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        one_kind(slurm=slurm)


def test_an_array_needs_a_job_that_can_be_cut() -> None:
    cluster = one_kind(slurm={"array": 2})
    with pytest.raises(ConfigError, match="name the job file with --job"):
        render(cluster, "slurm", None, job_file="job.toml")
    with pytest.raises(ConfigError, match="has one machine"):
        render(cluster, "slurm", a_job(machines=2), job_file="job.toml")
    cut = a_job().model_copy(update={"input": a_job().input.model_copy(update={"slice": "0/2"})})
    with pytest.raises(ConfigError, match="remove one of the two"):
        render(cluster, "slurm", cut, job_file="job.toml")
    with pytest.raises(ConfigError, match="needs an image"):
        render(one_kind(image="", slurm={"container": "pyxis"}), "slurm", None, job_file="job.toml")


def test_an_array_has_no_more_tasks_than_records() -> None:
    job = a_job()
    few = job.model_copy(update={"input": job.input.model_copy(update={"limit": 7})})
    cluster = one_kind(slurm={"array": 8})
    with pytest.raises(ConfigError, match=r"slurm\.array = 8 parts for input\.limit = 7 records"):
        script(cluster, "job.toml", few)
    assert "#SBATCH --array=0-6%4" in script(one_kind(slurm={"array": 7}), "job.toml", few)


def test_a_task_of_an_array_has_as_many_replicas_as_its_machine_holds() -> None:
    text = render(one_kind(slurm={"array": 5}), "slurm", a_job(replicas=8), job_file="job.toml")
    assert "group l4: up to 2 on each of 1 machines" in text
    assert "--set workers.replicas=2 &" in text
    assert "penumbra store merge s3://bucket/store-part-{0..4} --out s3://bucket/store" in text


def test_changes_of_the_job_reach_the_labeler(tmp_path: Path) -> None:
    """The script names the job's file, so what --set changed when it was rendered must be said again."""
    job = tmp_path / "job.toml"
    job.write_text(
        '[teacher]\nengine = "fake"\n[input]\nuri = "s3://b/in"\nkind = "text"\n[output]\nuri = "s3://b/o"\n'
    )
    overrides = ["workers.gpus=1", "labels.top_k=32", 'input.fields={text = "body of it"}']
    text = render(
        one_kind(), "slurm", load_job(str(job), overrides, {}), job_file=str(job), overrides=overrides
    )
    assert "--set workers.gpus=1 --set labels.top_k=32 --set 'input.fields={text = \"body of it\"}' &" in text
    assert_bash(tmp_path, text)


@pytest.mark.parametrize(
    ("container", "image", "says"),
    [
        ("pyxis", "/images/penumbra.sif", "is Apptainer's, which enroot cannot run"),
        ("pyxis", "library://team/penumbra:1", "is of library://, which enroot does not know"),
        ("pyxis", "registry.example/Team/penumbra", "is no name of an image in a registry"),
        ("pyxis", "docker://a b", "is no name of an image in a registry"),
        ("apptainer", "penumbra:", "is no name of an image in a registry"),
        ("apptainer", "two words", "is no name of an image in a registry"),
    ],
)
def test_an_image_that_the_program_cannot_run_is_refused(container: str, image: str, says: str) -> None:
    """Each would have been found out on the nodes, after the wait in the queue."""
    with pytest.raises(ConfigError, match=says):
        script(one_kind(image=image, slurm={"container": container}), "job.toml", None)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        ("/images/penumbra.sqsh", '"/images/penumbra.sqsh"'),
        ("/images/a-folder", '"/images/a-folder"'),
        ("./penumbra.sif", "./penumbra.sif"),
        ("library://team/penumbra:1", "library://team/penumbra:1"),
        ("registry.example/penumbra:1", "docker://registry.example/penumbra:1"),
    ],
)
def test_apptainer_runs_files_folders_and_what_a_library_has(image: str, word: str) -> None:
    text = script(one_kind(image=image, slurm={"container": "apptainer"}), "job.toml", None)
    assert f'--bind "$PWD" {word} python' in text
