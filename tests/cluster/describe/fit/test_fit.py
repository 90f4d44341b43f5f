"""Whether a job fits the machines that are described, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.describe.fit.machines import CATALOGS, LIST_PRICES, machine_for, price_lines, read_prices
from cluster.describe.fit.placement import check_placement
from cluster.describe.render import render
from cluster.describe.settings.cluster import ClusterConfig, GroupConfig, Kind
from labeler.config.loading import JobConfig, TeacherConfig
from logitstore.common.config_file import ConfigError
from tests.cluster.describe.descriptions import (
    CORES,
    TWO_KINDS,
    a_job,
    comments,
    one_kind,
    two_kinds,
)

pytestmark = pytest.mark.slow  # Ray's validator and Kubernetes' schemas take seconds to load


def test_replicas_fit_or_the_rule_is_named() -> None:
    assert check_placement(two_kinds(), a_job(replicas=16), CORES) == [
        "group l4: up to 2 on each of 4 machines",
        "group h100: up to 4 on each of 2 machines",
        UNKNOWN_SIZE,
    ]
    only = check_placement(two_kinds(), a_job(replicas=2, gpus=8, resources={"group-h100": 0.001}), CORES)
    assert only[0] == "group h100: up to 1 on each of 2 machines"
    parts = [a_job(replicas=2, gpus=share, tensor_parallel=1) for share in (0.6, 0.5, 0.3)]
    held = [check_placement(two_kinds(), job, CORES)[1] for job in parts]
    assert held == [f"group h100: up to {count} on each of 2 machines" for count in (8, 16, 24)]
    with pytest.raises(ConfigError, match="room for 16"):
        check_placement(two_kinds(), a_job(replicas=17), CORES)
    with pytest.raises(ConfigError, match="no group can hold one"):
        check_placement(two_kinds(), a_job(replicas=1, gpus=16, tensor_parallel=16), CORES)


def model_of(folder: Path, num_layers: int) -> str:
    """A model of 2 x 0.23e9 bytes a layer, whose config.json is here."""
    config = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 14336, "vocab_size": 1000}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": num_layers}))
    return str(folder)


def test_a_teacher_too_large_for_a_groups_gpus_is_refused(tmp_path: Path) -> None:
    """60 GB on two GPUs of 24 GB each: Ray would place half of the replicas there, and none would load."""
    teacher = {"model": model_of(tmp_path, 130), "tensor_parallel_size": 2, "max_model_len": 2048}
    job = a_job(replicas=8).model_copy(update={"teacher": TeacherConfig.model_validate(teacher)})
    with pytest.raises(ConfigError) as refused:
        check_placement(two_kinds(), job, CORES)
    for words in (
        "a GPU of group l4 has 25.8 GB",
        "each GPU of a replica needs about",
        "{ group-h100 = 0.001 }",
    ):
        assert words in str(refused.value)
    workers = job.workers.model_copy(update={"resources": {"group-h100": 0.001}})
    lines = check_placement(two_kinds(), job.model_copy(update={"workers": workers}), CORES)
    assert lines[0] == "group h100: up to 4 on each of 2 machines"
    assert "by its config.json" in lines[1]
    larger = [TWO_KINDS["groups"][0] | {"gpu_memory_gb": 48}, TWO_KINDS["groups"][1]]
    roomy = ClusterConfig.model_validate(TWO_KINDS | {"groups": larger})
    assert len(check_placement(roomy, job, CORES)) == 3
    huge = job.model_copy(
        update={"teacher": job.teacher.model_copy(update={"model": model_of(tmp_path, 400)})}
    )
    with pytest.raises(ConfigError, match="larger"):
        check_placement(two_kinds(), huge, CORES)


def test_a_guess_from_a_name_warns_and_an_unknown_size_is_said() -> None:
    teacher = a_job().teacher.model_copy(update={"model": "org/Teacher-32B"})
    lines = check_placement(two_kinds(), a_job(replicas=2).model_copy(update={"teacher": teacher}), CORES)
    assert lines[2].startswith("WARNING: a GPU of group l4 has 25.8 GB")
    assert "32B in its name" in lines[2]


def large_teacher(replicas: int, machines: int, gpus: int) -> tuple[ClusterConfig, JobConfig]:
    """Five machines of eight GPUs, and a job of `machines` stages of `gpus` GPUs each."""
    cluster = one_kind(groups=[TWO_KINDS["groups"][1] | {"count": 5}], kubernetes={})
    return cluster, a_job(replicas=replicas, gpus=gpus, tensor_parallel=gpus, machines=machines)


@pytest.mark.parametrize("kind", ["ray-aws", "kuberay-job", "slurm"])
@pytest.mark.parametrize(
    ("replicas", "machines", "gpus", "says"),
    [
        (2, 2, 8, "up to 2, each on 2 of 5 machines at once"),
        (5, 2, 4, "up to 5, each on 2 of 5 machines at once"),
        (1, 5, 8, "up to 1, each on 5 of 5 machines at once"),
    ],
)
def test_replicas_of_several_machines_are_placed(
    kind: Kind, replicas: int, machines: int, gpus: int, says: str
) -> None:
    cluster, job = large_teacher(replicas, machines, gpus)
    assert f"group h100: {says}" in comments(render(cluster, kind, job, job_file="job.toml"))


@pytest.mark.parametrize(
    ("replicas", "machines", "gpus", "says"),
    [
        (3, 2, 8, "8 GPUs and 1 cores on each of 2 machines of a group, but the cluster has room for 2"),
        (1, 6, 1, "no group can hold one"),
    ],
)
def test_replicas_of_more_machines_than_there_are_are_refused(
    replicas: int, machines: int, gpus: int, says: str
) -> None:
    cluster, job = large_teacher(replicas, machines, gpus)
    with pytest.raises(ConfigError, match=says):
        render(cluster, "ray-aws", job, job_file="job.toml")


UNKNOWN_SIZE = "GPU memory is not checked: nothing here says how large 'org/teacher' is"


def test_a_replica_is_not_spread_over_different_machines() -> None:
    with pytest.raises(ConfigError, match=r"each of the groups l4, h100; choose one: .* group-h100 = 0\.001"):
        check_placement(two_kinds(), a_job(replicas=1, machines=2), CORES)
    chosen = a_job(replicas=4, machines=2, resources={"group-l4": 0.001})
    assert check_placement(two_kinds(), chosen, CORES) == [
        "group l4: up to 4, each on 2 of 4 machines at once",
        UNKNOWN_SIZE,
    ]


def test_a_group_that_is_asked_for_must_exist_and_have_enough_of_its_resource() -> None:
    for resources in ({"group-a100": 0.001}, {"group-l4": 0.001, "group-h100": 0.001}):
        with pytest.raises(ConfigError, match="of the groups l4, h100; name one"):
            check_placement(two_kinds(), a_job(replicas=1, resources=resources), CORES)
    half = a_job(replicas=4, gpus=1, tensor_parallel=1, resources={"group-h100": 0.5})
    assert check_placement(two_kinds(), half, CORES) == [
        "group h100: up to 2 on each of 2 machines",
        UNKNOWN_SIZE,
    ]


def test_what_kubernetes_keeps_for_itself_is_not_counted() -> None:
    cpu = two_kinds(groups=[{"name": "cpu", "count": 1, "cores": 8}])
    job = a_job(replicas=8, gpus=0, tensor_parallel=1)
    assert "up to 8" in render(cpu, "ray-aws", job, job_file="job.toml")
    with pytest.raises(ConfigError, match="room for 7"):
        render(cpu, "kuberay-cluster", job, job_file="job.toml")


def test_prices_add_up_and_yours_replace_ours() -> None:
    lines = price_lines(two_kinds(head={"price_per_hour": 0.5}), "aws")
    l4 = machine_for(two_kinds().groups[0], "aws").price_per_hour * 0.4 * 4
    h100 = machine_for(two_kinds().groups[1], "aws").price_per_hour * 2
    assert f"{0.5 + l4 + h100:.2f} USD/h" in lines[-2]
    assert "written from memory" in lines[-1]
    assert price_lines(two_kinds(), None)[1].endswith("at AWS's price; set price_per_hour")
    unknown = two_kinds(groups=[{"name": "own", "count": 1, "accelerator": "MI300X", "gpus": 8}])
    assert price_lines(unknown, None, head=False) == ["own: 1 machines, price unknown (set price_per_hour)"]


def test_a_file_of_prices_replaces_the_list(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    machine = machine_for(two_kinds().groups[1], "aws")
    path.write_text(
        json.dumps({"as_of": "2026-11", "source": "our contract", "per_hour": {machine.name: 1.25}})
    )
    lines = price_lines(two_kinds(), "aws", prices=read_prices(path))
    assert "h100: 2 x 1.25 = 2.50 USD/h" in lines
    assert lines[-1] == f"prices of 2026-11: our contract; of other machines: the list of {LIST_PRICES.as_of}"
    assert lines[1] == price_lines(two_kinds(), "aws")[1], "others keep the list's price"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json", "cannot be used"),
        ("[1]", "cannot be used"),
        ('{"as_of": "x", "source": "y", "per_hour": {"m": "much"}}', "cannot be used"),
        ('{"as_of": "x", "source": "y", "per_hour": {"m": true}}', "True is no number"),
        ("[" * 100_000, "cannot be used"),
        ('{"as_of": "x", "source": "y\\nrm -rf /", "per_hour": {"m": 1}}', "must be one line"),
        ('{"as_of": "x", "source": "y", "per_hour": {"m": -1}}', "'m' is -1.0, it must be at least 0"),
    ],
)
def test_prices_that_cannot_be_used_are_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_prices(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_prices(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_prices(tmp_path)


def test_prices_of_no_machine_here_are_said(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"as_of": "2026-11", "source": "us", "per_hour": {"p5-48xlarge": 1, "g6-12xlarge": 1}}')
    names = [machine_for(one, "aws").name for one in (two_kinds().head, *two_kinds().groups)]
    lines = price_lines(two_kinds(), "aws", prices=read_prices(path))
    assert lines[-2] == (
        f"WARNING: none of the 2 prices of --prices is of these machines, which are {', '.join(names)}; "
        "name them so"
    )


@pytest.mark.parametrize("cloud", sorted(CATALOGS))
def test_every_machine_of_the_list_can_be_asked_for(cloud: str) -> None:
    for accelerator, count in CATALOGS[cloud][0]:
        group = GroupConfig(name="g", count=1, accelerator=accelerator, gpus=count)
        assert machine_for(group, cloud) is CATALOGS[cloud][0][accelerator, count]
    with pytest.raises(ConfigError, match="known are"):
        machine_for(GroupConfig(name="g", count=1, accelerator="B200", gpus=3), cloud)


def hub_teacher(monkeypatch: pytest.MonkeyPatch, num_layers: int) -> JobConfig:
    """A teacher of 0.47 GB a layer that machines must fetch, whose config.json is known."""
    config = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 14336, "vocab_size": 1000}
    known = config | {"num_hidden_layers": num_layers}
    monkeypatch.setattr("labeler.planning.fit.gpu_memory._config_of", lambda model, revision: known)
    teacher = a_job().teacher.model_copy(update={"max_model_len": 2048})
    return a_job(replicas=2, gpus=8, tensor_parallel=8).model_copy(
        update={"teacher": teacher.model_copy(update={"tensor_parallel_size": 8})}
    )


PLACED = "group h100: up to 1 on each of 2 machines"


def test_a_teacher_that_no_disk_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    job = hub_teacher(monkeypatch, 500)  # 235 GB: on eight GPUs well, on a disk of 200 GB not
    groups = [TWO_KINDS["groups"][1]]
    with pytest.raises(ConfigError) as refused:
        render(two_kinds(groups=groups), "ray-aws", job, job_file="job.toml")
    for words in ("by its config.json", "170 GB on group h100", "raise disk_gb"):
        assert words in str(refused.value)
    for changes in (
        {"groups": [groups[0] | {"disk_gb": 400}]},
        {"disk_gb": 400, "groups": groups},
        {"groups": groups, "cache": {"host_path": "/nvme"}},
    ):
        assert PLACED in render(two_kinds(**changes), "ray-aws", job, job_file="job.toml")
    small = two_kinds(groups=groups, cache={"size_gb": 100})
    with pytest.raises(ConfigError, match="room for 100 GB"):
        render(small, "kuberay-cluster", job, job_file="job.toml")
    assert PLACED in render(two_kinds(groups=groups), "kuberay-cluster", job, job_file="job.toml")
    onwards = two_kinds(groups=[groups[0] | {"disk_gb": 100, "spot": False}])
    with pytest.raises(ConfigError, match="room for 100 GB"):
        render(onwards, "slurm", job, job_file="job.toml")


def test_a_disk_that_may_be_too_small_is_a_warning_and_the_stores_size_is_told() -> None:
    job = a_job(replicas=2, gpus=8, tensor_parallel=8)
    teacher = job.teacher.model_copy(update={"model": "org/Teacher-110B"})
    labels = job.labels.model_copy(update={"mode": "generate", "top_k": 64})
    read = job.input.model_copy(update={"limit": 10_000, "slice": "1/2"})
    job = job.model_copy(update={"teacher": teacher, "labels": labels, "input": read})
    text = render(two_kinds(groups=[TWO_KINDS["groups"][1]]), "ray-aws", job, job_file="job.toml")
    assert "WARNING: the teacher's weights are about 220.0 GB (110B in its name" in text
    assert "the store takes at most about 0.3 GB" in text  # 5,000 x 512 rows of 131 B
