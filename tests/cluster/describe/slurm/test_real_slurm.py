"""What is rendered for Slurm, in a real one: sbatch's own parser, steps on two nodes, signals and requeues."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.describe.render import render
from cluster.describe.settings.cluster import ClusterConfig
from tests.cluster.describe.descriptions import a_job
from tests.cluster.describe.slurm.real_slurm import (
    Slurm,
    SlurmDoesNotRunError,
    can_run_slurm,
    real_slurm,
)
from tests.cluster.describe.slurm.stub_slurm import assert_bash

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_run_slurm(), reason="needs root and Debian's slurmctld, slurmd and munge"),
]
PYTHON = """\
#!/bin/bash
# In place of Ray and the labeler: notes what it was called with, and where.
note() { echo "$SLURMD_NODENAME ${SLURM_RESTART_COUNT:-0} ${SLURM_ARRAY_TASK_ID:-} $RAY_AUTH_TOKEN $1" >>"$NOTES"; }
case "$*" in
  *" status "*) ;;
  *" start "*) [ -d "$RAY_TMPDIR" ] && note "ray $*"; exec sleep 600 ;;
  *labeler*) trap 'note drained; exit 4' TERM; note "labeler $*"; while :; do sleep 0.1; done ;;
esac
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(real_slurm(tmp_path_factory.mktemp("slurm")))
        except SlurmDoesNotRunError as error:
            pytest.skip(str(error))
        yield found


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short name, as sockets need it; each Slurm of these tests counts its jobs from 1."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def a_cluster(folder: Path, scratch: str | Path = "/tmp", *, gpus: int = 2, **changes: Any) -> ClusterConfig:
    group = {"name": "h100", "count": 2, "cores": 4, "memory_gb": 8}
    if gpus:
        group |= {"accelerator": "H100", "gpus": gpus}
    slurm = {"setup": f"export NOTES={folder}/notes", "scratch": str(scratch)} | changes.pop("slurm", {})
    python = {"python": str(folder / "python")}
    return ClusterConfig.model_validate(
        {"name": "distill", "groups": [group], "slurm": slurm} | python | changes
    )


def scripted(folder: Path, cluster: ClusterConfig) -> Path:
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    gpus = cluster.groups[0].gpus
    job = a_job(2, gpus=gpus, tensor_parallel=max(gpus, 1))
    return assert_bash(folder, render(cluster, "slurm", job, job_file="job.toml"))


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def notes_of(folder: Path) -> list[list[str]]:
    file = folder / "notes"
    return [line.split(" ", 4) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gpus": 0},
        {"slurm": {"gpu_types": {"H100": "h100"}, "partition": "gpu", "hours": 30.01}},
        {"slurm": {"array": 3, "directives": ["--mem=0", "--exclusive", "--qos=high"]}},
        {"slurm": {"directives": ["--mem-per-cpu=1G", "--no-requeue", "--hint=nomultithread"]}},
        {"slurm": {"directives": ["--gres=gpu:h100:2", "--mem-per-gpu=2G", "--cpus-per-gpu=2"]}},
        {"slurm": {"directives": ["--gpus=4", "--ntasks-per-node=1", "--nodelist=n[1-2]", "--export=NONE"]}},
        {"slurm": {"directives": ['--comment="two words, one #"', "--mail-user=ada@lab.example"]}},
        {"slurm": {"directives": ["--output='logs of %u/%x-%j.log'", "--error /tmp/%j.err", "--chdir=/tmp"]}},
        {"cache": {"size_gb": 1}, "slurm": {"directives": ["--tmp=0"]}},
    ],
)  # fmt: skip
def test_sbatch_takes_what_is_rendered(slurm: Slurm, tmp_path: Path, changes: dict[str, Any]) -> None:
    script = scripted(tmp_path, a_cluster(tmp_path, **changes))
    slurm.asked("sbatch", "--test-only", str(script), cwd=tmp_path)


def test_a_job_on_two_nodes_drains_and_is_queued_again(slurm: Slurm, tmp_path: Path, scratch: Path) -> None:
    script = scripted(tmp_path, a_cluster(tmp_path, scratch))
    job_id = slurm.asked("sbatch", "--parsable", str(script), cwd=tmp_path).strip()
    try:
        wait_until(lambda: len(notes_of(tmp_path)) == 3, "Ray on both nodes and the labeler")
        slurm.asked("scancel", "--signal=TERM", "--batch", job_id)
        wait_until(lambda: slurm.job(job_id)["Restarts"] == "1", "another turn")
    finally:
        slurm.asked("scancel", job_id)
    notes = notes_of(tmp_path)
    assert {(node, said.split()[0]) for node, _, _, _, said in notes} == {
        ("n1", "ray"), ("n2", "ray"), ("n1", "labeler"), ("n1", "drained"),
    }  # fmt: skip
    assert len({token for _, _, _, token, _ in notes}) == 1
    assert all("--num-cpus=4 --num-gpus=2" in said for *_, said in notes if said.startswith("ray"))
    assert not list(scratch.iterdir()), "the folder of Ray's sockets is left"
    assert (tmp_path / f"distill-{job_id}.log").exists()


def test_of_an_array_only_the_task_that_was_warned_is_queued_again(
    slurm: Slurm, tmp_path: Path, scratch: Path
) -> None:
    script = scripted(tmp_path, a_cluster(tmp_path, scratch, slurm={"array": 2}))
    job_id = slurm.asked("sbatch", "--parsable", str(script), cwd=tmp_path).strip()
    try:
        wait_until(lambda: sum("labeler" in said for *_, said in notes_of(tmp_path)) == 2, "both tasks")
        slurm.asked("scancel", "--signal=TERM", "--batch", f"{job_id}_1")
        wait_until(lambda: slurm.job(f"{job_id}_1")["Restarts"] == "1", "another turn of the task")
        assert slurm.job(f"{job_id}_0")["Restarts"] == "0"
        assert slurm.job(f"{job_id}_0")["JobState"] == "RUNNING"
    finally:
        slurm.asked("scancel", job_id)
    slices = {
        task: said for _, turn, task, _, said in notes_of(tmp_path) if "labeler" in said and turn == "0"
    }
    assert {task: f"input.slice={task}/2" in said for task, said in slices.items()} == {"0": True, "1": True}
