"""GPUs that no node has are told of before anything is waited for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from labeler.config.loading import JobConfig, WorkersConfig, load_job
from labeler.driver.run import RunOptions, run
from labeler.errors import StoppedError
from labeler.job.status import read_status
from labeler.on_ray.gpus import STATUS_KEY, check_gpus, check_gpus_for_dry_run, may_grow
from labeler.on_ray.room import lack_of_gpus
from logitstore.common.config_file import ConfigError
from tests.labeler.jobs import events

GB = 10**9


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    shown = {"memory": 16.0 * GB, "object_store_memory": 1.0 * GB, "node:10.0.0.1": 1.0}
    return {"Alive": alive, "Resources": {"CPU": 8.0, **shown, **resources}}


@pytest.mark.parametrize(
    ("workers", "nodes", "words"),
    [
        ({"gpus": 0}, [node()], ""),
        ({"gpus": 1}, [node(), node(GPU=1.0)], ""),
        ({"gpus": 0.5}, [node(GPU=1.0)], ""),
        ({"gpus": 1}, [node(), node(), node(alive=False, GPU=4.0)],
         "workers.gpus = 1, but none of 2 nodes have that (2 with 8 CPU, 0 GPU, 16.0 GB memory)"),
        ({"gpus": 8}, [node(GPU=4.0), node()],
         "workers.gpus = 8, but none of 2 nodes have that (1 with 8 CPU, 4 GPU, 16.0 GB memory; 1 with 8 CPU, "),
        ({"gpus": 4, "machines": 2}, [node(GPU=4.0), node()],
         "workers.gpus = 4 on each of workers.machines = 2, but 1 of 2 nodes have that"),
        ({"gpus": 1}, [], "workers.gpus = 1, but none of 0 nodes have that (none)"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_said_with_what_there_is(
    workers: dict[str, Any], nodes: list[dict[str, Any]], words: str
) -> None:
    found = lack_of_gpus(WorkersConfig(**workers), nodes)
    assert found.startswith(words) if words else found == ""


@pytest.mark.parametrize(
    ("active", "grows"),
    [
        ({"node_1f": 1, "node_2e": 1}, False),
        ({"head": 1}, True),
        ({"node_1f": 1, "h100": 2}, True),
        ({}, True),
    ],
)
def test_only_a_cluster_without_node_types_is_known_not_to_grow(active: dict[str, int], grows: bool) -> None:
    report = {"active_nodes": active, "idle_nodes": None}
    assert may_grow(json.dumps({"autoscaler_report": report}).encode()) is grows
    assert may_grow(None)
    assert may_grow(b"{}")


def a_job(folder: Path, *overrides: str) -> JobConfig:
    (folder / "in.jsonl").write_text('{"text": "a text"}\n')
    base = ["teacher.engine=fake", f"input.uri='{folder}/in.jsonl'", "input.kind=text", "labels.top_k=4"]
    return load_job(None, [*base, f"output.uri='{folder}/store'", "workers.gpus=64", *overrides], {})


def test_a_dry_run_of_a_real_teacher_asks_this_machine(tmp_path: Path) -> None:
    assert check_gpus_for_dry_run(a_job(tmp_path)) == ""
    real = ("teacher.engine=vllm", "teacher.model=m")
    with pytest.raises(ConfigError, match=r"workers.gpus = 64, but none of 1 nodes.*workers.gpus = 0, or"):
        check_gpus_for_dry_run(a_job(tmp_path, *real))
    assert "workers.gpus = 64" in check_gpus_for_dry_run(a_job(tmp_path, *real, "limits.wait_sec=9"))


@pytest.mark.ray
def test_a_job_is_refused_where_no_node_has_its_gpus_and_waits_where_some_may_come(tmp_path: Path) -> None:
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    exit_status, status = run(a_job(tmp_path), RunOptions(quiet=True))
    assert (int(exit_status), status.state) == (2, "failed")
    assert status.message.startswith("workers.gpus = 64, but none of 1 nodes have that (1 with ")
    assert "set limits.wait_sec to how long" in status.message
    assert read_status(str(tmp_path / "store")).message == status.message
    assert events(tmp_path / "store", "ended")[0]["exit_status"] == 2
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        address = ray.get_runtime_context().gcs_address
        joined = a_job(tmp_path, f"workers.address='{address}'")
        deadline = time.monotonic() + 150
        while _internal_kv_get(STATUS_KEY) is None and time.monotonic() < deadline:
            assert "the cluster may start such nodes by itself" in check_gpus(joined, patience_sec=0)
            time.sleep(0.2)
        while may_grow(_internal_kv_get(STATUS_KEY)) and time.monotonic() < deadline:
            time.sleep(0.2)
        with pytest.raises(ConfigError, match="none of 1 nodes"):
            check_gpus(joined, patience_sec=0)
        with pytest.raises(StoppedError):
            check_gpus(joined, is_stopped=lambda: True)
        waits = a_job(tmp_path, f"workers.address='{address}'", "limits.wait_sec=5")
        assert check_gpus(waits, patience_sec=0).endswith("the job waits for limits.wait_sec = 5")
    finally:
        ray.shutdown()
