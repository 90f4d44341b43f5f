"""A teacher held against the machines that a cluster has at the moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import JobRefusedError
from cluster.jobs.machines import check_machines
from labeler.config.loading import JobConfig

MEGABYTE = 2**20


def a_job(model: str, **workers: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "teacher": {"model": model, "max_model_len": 2048},
            "input": {"uri": "s3://bucket/prompts.jsonl", "kind": "text"},
            "output": {"uri": "s3://bucket/store"},
            "workers": {"replicas": 2, "gpus": 1} | workers,
        }
    )


def node(
    name: str, kind: str = "", *, memory_mb: int = 0, free: float | None = None, **resources: float
) -> dict[str, Any]:
    """As Ray 2.60's dashboard shows one."""
    gpu = {f"accelerator_type:{kind}": 1.0} if kind else {}
    return {
        "hostname": name,
        "raylet": {"state": "ALIVE", "resourcesTotal": {"CPU": 8.0, "GPU": 4.0} | gpu | resources},
        "gpus": [{"memoryTotal": memory_mb}] if memory_mb else [],
        "disk": {"/": {"total": 1, "free": 1} if free is None else {"total": 10**13, "free": free}},
    }


@pytest.fixture
def thirty_gb(tmp_path: Path) -> str:
    config = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 14336, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 65}))
    return str(tmp_path)


def test_a_machine_whose_gpus_cannot_hold_the_teacher_is_refused(thirty_gb: str) -> None:
    nodes = [node("small", "L4"), node("large", "H100")]
    with pytest.raises(JobRefusedError) as refused:
        check_machines(a_job(thirty_gb), nodes)
    for words in ("small (26 GB)", "by its config.json", '{ "accelerator_type:H100" = 0.001 }'):
        assert words in str(refused.value)
    assert check_machines(a_job(thirty_gb), nodes[1:]) == []
    assert check_machines(a_job(thirty_gb, resources={"accelerator_type:H100": 0.001}), nodes) == []
    with pytest.raises(JobRefusedError, match="larger GPUs"):
        check_machines(a_job(thirty_gb), nodes[:1])


def test_what_a_machine_reports_counts_before_its_kind(thirty_gb: str) -> None:
    assert check_machines(a_job(thirty_gb), [node("a", "L4", memory_mb=81_559)]) == []
    with pytest.raises(JobRefusedError, match=r"a \(24 GB\)"):
        check_machines(a_job(thirty_gb), [node("a", "", memory_mb=23_034)])


def test_machines_that_say_nothing_or_take_no_replica_are_passed_over(thirty_gb: str) -> None:
    dead = node("dead", "L4") | {"raylet": {"state": "DEAD", "resourcesTotal": {"CPU": 8.0, "GPU": 4.0}}}
    starting: dict[str, Any] = {"raylet": {}}
    assert check_machines(a_job(thirty_gb), [dead, starting, node("unknown")]) == []
    assert check_machines(a_job(thirty_gb, gpus=8), [node("small", "L4")]) == []


def test_a_guess_and_a_full_disk_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labeler.planning.fit.gpu_memory._config_of", lambda model, revision: None)
    job = a_job("org/Teacher-32B")
    memory, disk = check_machines(job, [node("small", "L4", free=50e9), node("large", "H200", free=500e9)])
    assert memory.startswith("WARNING: a replica may be placed on small (26 GB), but the teacher's weights")
    assert "32B in its name" in memory
    assert "more than the root disk of small has free" in disk
    (disk,) = check_machines(job, [node("full", "H200", free=0), node("pod", "H200")])
    assert "more than the root disk of full has free" in disk
