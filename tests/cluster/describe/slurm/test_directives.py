"""What sbatch is told: no two lines that exclude each other, and a time limit that is one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cluster.describe.slurm.script import script
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import ONE_KIND, a_job, one_kind


def directives(*given: str, hours: float = 1.5) -> list[str]:
    cluster = one_kind(slurm=ONE_KIND["slurm"] | {"directives": given, "hours": hours})
    text = script(cluster, "job.toml", None)
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ("--mem-per-cpu=4G", "--mem="),
        ("--mem-per-gpu=90G", "--mem="),
        ("--gres=gpu:l4:4", "--gpus-per-node="),
        ("--gres=lscratch:100,gpu:4", "--gpus-per-node="),
        ("--gres gpu:4", "--gpus-per-node="),
        ("--gpus=16", "--gpus-per-node="),
        ("--cpus-per-gpu=12", "--cpus-per-task="),
        ("--no-requeue", "--requeue"),
    ],
)
def test_a_directive_replaces_the_one_that_it_excludes(given: str, gone: str) -> None:
    without, found = directives(), directives(given)
    assert found == [*(line for line in without if not line.startswith(gone)), given]
    assert len(found) == len(without)


def test_another_resource_leaves_the_gpus() -> None:
    assert directives("--gres=lscratch:100", "--comment=gpu") == [
        *directives(), "--gres=lscratch:100", "--comment=gpu",
    ]  # fmt: skip


def test_a_time_limit_of_less_than_a_minute_is_not_none() -> None:
    """Slurm takes --time=0 for no limit."""
    assert "--time=00:04:00" in directives(hours=0.0501)
    for hours in (0.001, 2 / 60):
        with pytest.raises(ConfigError, match=r"no time is left; raise slurm\.hours"):
            directives(hours=hours)
    cluster = one_kind(slurm={"hours": 0.1})
    with pytest.raises(ConfigError, match=r"workers\.drain_sec = 400"):
        script(cluster, "job.toml", a_job(drain_sec=400))


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("--array=0-3", "slurm.array"),
        ("--nodes=2", "count of the group"),
        ("--time 00:01:00", "slurm.hours"),
        ("--signal=USR1@10", "workers.drain_sec"),
    ],
)
def test_what_a_setting_says_is_no_directive(line: str, setting: str) -> None:
    """Each would part the script from what was checked: all tasks of an array would label one store."""
    with pytest.raises(ValidationError, match=f"said by a setting of its own; set {setting}"):
        directives(line)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--arr=0-3", "sbatch would take --arr for --array; write the whole name"),
        ("--node=4", "sbatch would take --node for --nodes"),
        ("--cpus-per-t=2", "for --cpus-per-task"),
        ("--comment=two words", "ends a value at a space or '#'"),
        ("--comment=a#b", "ends a value at a space or '#'"),
        ("--output=my logs/%j.log", "put the value in double quotes"),
        ('--comment="open', "put the value in double quotes"),
        ("--qos = high", "put the value in double quotes"),
        ("--", "is more than a name and one value"),
        ("--comment=", "ends without its value"),
        ("--output=$HOME/%j.log", "the job would end without a log"),
        ('--error="${SCRATCH}/%j.log"', "the job would end without a log"),
        ("--chdir=~/runs", "the job would end without a log"),
    ],
)
def test_what_sbatch_would_read_otherwise_is_refused(line: str, says: str) -> None:
    """sbatch itself takes `--arr=0-3` for an array, and ends at a second word in a message that names neither
    line nor remedy (`test_real_slurm.py` has one)."""
    with pytest.raises(ValidationError) as refused:
        directives(line)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("--cpus-per-task=24", "48, which Ray and the checks go by; set the group's cores"),
        ("--cpus-per-gpu 8", "12, which"),
        ("--gpus-per-node=l4:2", "4, which"),
        ("--gpus-per-task=8", "4, which"),
        ("--gpus=4", "16, which"),
        ("--gres=lscratch:100,gpu:l4:8(S:0-1)", "4, which"),
        ("--gres=gpu", "4, which"),
        ("--gres=gpu:a:2,gpu:b:1", "4, which"),
        ("--ntasks=8", "4, which"),
        ("--ntasks-per-node=2", "1, which"),
        ("--tasks-per-node=4", "1, which"),
        ("--gpus-per-node=l4:2,t4:4", "4, which"),
        ("--gpus=l4:8,t4:4", "16, which"),
    ],
)
def test_other_cores_and_gpus_than_ray_is_told_of_are_refused(line: str, meant: str) -> None:
    """Ray would start replicas on cores and GPUs that the job was not given."""
    with pytest.raises(ConfigError) as refused:
        directives(line)
    assert meant in str(refused.value)


def test_the_same_cores_and_gpus_may_be_said_in_the_sites_way() -> None:
    for line in (
        "--cpus-per-task=48",
        "--gres=gpu:l4:2,gpu:t4:2",
        "--gpus-per-node=l4:2,t4:2",
        "--gpus=l4:8,t4:8",
        "--ntasks=4",
        "--tasks-per-node=1",
        '--gpus-per-node="l4:4"',
    ):
        assert line in directives(line)
    cluster = one_kind(slurm={"array": 2, "directives": ["--ntasks=1", "--gpus=4"]})
    assert "#SBATCH --gpus=4" in script(cluster, "job.toml", a_job())
