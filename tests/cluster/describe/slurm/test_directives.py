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
        ("--cpus-per-gpu=8", "--cpus-per-task="),
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
