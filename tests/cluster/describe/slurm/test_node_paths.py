"""Folders of the nodes in the batch script: `~` and variables are those of whoever runs it there."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from cluster.describe.render import render
from cluster.describe.settings.cluster import Kind
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import a_job, one_kind
from tests.cluster.describe.slurm.stub_slurm import assert_bash, installed

pytestmark = pytest.mark.slow  # shellcheck

HERE = {"HOME": "/home/ada", "USER": "ada", "SCRATCH": "/scratch/ada b"}


def steps_of(folder: Path, environment: dict[str, str], **cluster: Any) -> tuple[str, str]:
    """What srun was called with by the rendered script until it looked for its address, and its messages."""
    script = assert_bash(folder, render(one_kind(**cluster), "slurm", None, job_file="job.toml"))
    tools = {
        "scontrol": "echo n1",
        "srun": 'printf \'%s|\' "$SLURM_EXPORT_ENV" "$@" >> "$NOTES"; echo >> "$NOTES"',
    }
    own = installed(folder, tools, node_list="n1", num_nodes="1", job_id="12345678")
    done = subprocess.run(
        ["bash", str(script)], env=own | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, "these nodes have no address"
    notes = folder / "notes"
    return notes.read_text() if notes.exists() else "", done.stderr


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/nvme/$USER", "/nvme/ada"),
        ("~/hf", "/home/ada/hf"),
        ("~", "/home/ada"),
        ("${HOME}/of_$USER/x", "/home/ada/of_ada/x"),
        ("$SCRATCH/hf", "/scratch/ada b/hf"),
    ],
)
def test_a_folder_is_found_by_the_shell_of_the_nodes(tmp_path: Path, path: str, found: str) -> None:
    said, _ = steps_of(tmp_path, HERE, slurm={"scratch": path}, cache={"host_path": path})
    made = [line.split("|")[-2] for line in said.splitlines() if "|mkdir|" in line]
    assert [made[0].rpartition("/ray-")[0], made[1]] == [found, found]
    mounts = [path, f"{path}/a(1):/models", f"/x:{path}"]
    for container in ("apptainer", "pyxis"):
        slurm = {"container": container, "mounts": mounts}
        text = render(one_kind(slurm=slurm), "slurm", None, job_file="job.toml")
        assert_bash(tmp_path, text)
    (tmp_path / "notes").unlink()
    said, _ = steps_of(tmp_path, HERE, slurm={"container": "pyxis", "mounts": mounts})
    (given,) = {word for word in said.split("|") if word.startswith("--container-mounts=")}
    assert given.endswith(f",{found}:{found},{found}/a(1):/models,/x:{found}")


@pytest.mark.parametrize(
    ("container", "before", "suffix"), [("apptainer", "", "sif"), ("pyxis", "--container-image=", "sqsh")]
)
def test_a_file_of_an_image_is_found_so(container: str, before: str, suffix: str, tmp_path: Path) -> None:
    for path, word in (("~/p", "${HOME}/p"), ("$SCRATCH/p", "${SCRATCH}/p"), ("/images/p", "/images/p")):
        cluster = one_kind(image=f"{path}.{suffix}", slurm={"container": container})
        text = render(cluster, "slurm", None, job_file="job.toml")
        assert_bash(tmp_path, text)
        assert f'{before}"{word}.{suffix}"' in text


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    said, told = steps_of(tmp_path, {}, slurm={"scratch": "$SCRATCH"})
    assert "SCRATCH: slurm.scratch names it and it is not set on this node" in told
    assert said == ""


def test_a_folder_too_long_for_sockets_is_refused_before_ray_starts(tmp_path: Path) -> None:
    longest = 39 - len("/ray-0-12345678")
    said, told = steps_of(tmp_path, {"L": "/" + "x" * longest}, slurm={"scratch": "$L"})
    assert "is too long for Ray's sockets (at most 39 bytes); set a shorter slurm.scratch" in told
    assert said == ""


def test_steps_get_the_scripts_variables_where_a_site_exports_none(tmp_path: Path) -> None:
    said, _ = steps_of(tmp_path, {"SLURM_EXPORT_ENV": "NONE"}, slurm={})
    assert {line.split("|")[0] for line in said.splitlines()} == {"ALL"}


@pytest.mark.parametrize(
    "path", ["relative", "~ada/x", "/a b", "/$(touch x)", "$", "/a/${B-c}", "$A:x", "a~"]
)
def test_what_is_no_folder_is_refused_in_words(path: str) -> None:
    wrong: list[dict[str, Any]] = [{"slurm": {"scratch": path}}, {"cache": {"host_path": path}}]
    for setting in wrong:
        with pytest.raises(ValidationError, match=r"starts with '/', '~/' or a variable.*write it so"):
            one_kind(**setting)
    with pytest.raises(ValidationError, match="a mount is '/path' or"):
        one_kind(slurm={"container": "pyxis", "mounts": [path, "/a:/b:/c"]})


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind.startswith(("ray", "kuberay"))])
def test_a_folder_that_no_shell_looks_up_is_refused(kind: Kind) -> None:
    gcp = {"project": "p", "zone": "us-central1-a"}
    for path in ("~/hf", "/scratch/$USER"):
        cluster = one_kind(cache={"host_path": path}, gcp=gcp)
        with pytest.raises(ConfigError, match=f"which {kind} does not ask; write the whole path"):
            render(cluster, kind, a_job(), job_file="job.toml")
