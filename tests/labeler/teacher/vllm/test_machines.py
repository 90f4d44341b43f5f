"""Replicas over several machines: Ray nodes that claim their GPUs, and a vLLM engine over two real ones."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.jobs.running_job import started, units_done, wait_for
from labeler.config.loading import WorkersConfig, load_job
from labeler.on_ray.room import lack_of_room
from labeler.on_ray.runtime import ray_for
from logitstore.common.config_file import ConfigError
from tests.labeler import engines, nodes
from tests.labeler.jobs import assert_exactly_once, events, is_alive, overrides_for, write_records

RECORDS = 400
TWO_MACHINES = ("teacher.pipeline_parallel_size=2", "workers.machines=2", "workers.replicas=1")
GROUPS = (
    "{k: [v['state'], v['bundles_to_node_id'], v['bundles']] for k, v in placement_group_table().items()}"
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nodes.RayNodes]:
    with nodes.ray_nodes(tmp_path / "state", monkeypatch) as cluster:
        yield cluster


def node(resources: dict[str, float], *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("sizes", "remedy"),
    [
        ([8, 8, 4], "2 of the cluster's 3 are that large; they are in use: wait for them"),
        ([8, 4], "1 of the cluster's 2 are that large; add such machines, or ask for less"),
    ],
)
def test_a_lack_of_room_is_told_with_what_there_is(sizes: list[int], remedy: str) -> None:
    workers = WorkersConfig(replicas=4, machines=2, gpus=8, cores=2, resources={"group-h100": 0.5})
    there = [node({"CPU": 16, "GPU": size, "group-h100": 1, "node:10.0.0.1": 1}) for size in sizes]
    gone = node({"CPU": 16, "GPU": 8, "group-h100": 1}, alive=False)
    text = lack_of_room(workers, 3, [*there, gone])
    assert text.startswith(
        "3 of 4 replicas wait for room: each takes 2 machines with 2 CPU, 8 GPU, 0.5 group-h100"
    )
    assert remedy in text


def test_several_machines_need_a_cluster(tmp_path: Path) -> None:
    job = load_job(None, overrides_for(tmp_path, *TWO_MACHINES), {})
    with (
        pytest.raises(ConfigError, match=r"workers\.machines = 2 needs .*workers\.address or RAY_ADDRESS"),
        ray_for(job),
    ):
        pass


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_replica_holds_two_machines_and_its_successor_others(
    cluster: nodes.RayNodes, tmp_path: Path
) -> None:
    """Two replicas wanted, room for one: what waits is told, what was killed is replaced, nothing is left."""
    for ip in ("127.0.0.31", "127.0.0.32"):
        cluster.join(ip, cpus=1, gpus=2)
    write_records(tmp_path / "in.jsonl", 2000)
    store = tmp_path / "store"
    overrides = overrides_for(
        tmp_path,
        f"workers.address='{cluster.gcs_address}'",
        *TWO_MACHINES,
        "workers.replicas=2",
        "workers.gpus=2",
        "teacher.tensor_parallel_size=2",
        "teacher.fake.seconds_per_token=0.02",
        "output.unit_size=4",
    )
    with started(overrides) as job:
        wait_for(lambda: units_done(store) >= 1, job)
        first = groups(cluster, "CREATED")
        ((group_id, (_, places, bundles)),) = first.items()
        assert sorted(places.values()) == sorted(cluster.node_id(f"127.0.0.{n}") for n in (31, 32))
        assert list(bundles.values()) == [{"CPU": 1.0, "GPU": 2.0}] * 2
        assert cluster.ask("ray.available_resources().get('GPU', 0)") == 0, "the other replica takes nothing"
        wait_for(lambda: bool(events(store, "replicas_wait")), job)
        (waiting,) = events(store, "replicas_wait")
        # One of them, or both if the start was slow.
        assert "of 2 replicas wait for room: each takes 2 machines with 1 CPU, 2 GPU" in waiting["reason"]
        assert "2 of the cluster's 3 are that large; they are in use" in waiting["reason"]
        (actor,) = cluster.processes("ray::Worker")
        actor.kill()
        wait_for(lambda: len(events(store, "worker_ready")) == 2, job)
        wait_for(lambda: group_id not in groups(cluster, "CREATED"), job)
        for ip in ("127.0.0.33", "127.0.0.34"):
            cluster.join(ip, cpus=1, gpus=2)
        wait_for(lambda: len(events(store, "worker_ready")) == 3, job)
        second = groups(cluster, "CREATED")
        assert len(second) == 2
        assert len({node_id for _, places, _ in second.values() for node_id in places.values()}) == 4
        job.process.send_signal(signal.SIGTERM)
        exit_status, output = job.finish()
    assert exit_status == 4, output
    wait_until(lambda: groups(cluster, "CREATED") == groups(cluster, "PENDING") == {})
    wait_until(lambda: cluster.ask("ray.available_resources().get('GPU')") == 8)


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def have_ended(processes: list[psutil.Process]) -> bool:
    return not any(is_alive(process.pid) for process in processes)


def groups(cluster: nodes.RayNodes, state: str) -> dict[str, Any]:
    return {name: group for name, group in cluster.ask(GROUPS).items() if group[0] == state}


@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(1500)
@engines.needs_model
def test_an_engine_over_two_machines_survives_the_death_of_each_process_on_the_second(
    cluster: nodes.RayNodes, tmp_path: Path
) -> None:
    """vLLM with a stage on each node; labels come from the second one and are those of transformers."""
    for ip in ("127.0.0.31", "127.0.0.32"):
        cluster.join(ip, cpus=1)
    model = engines.write_even_model(tmp_path / "model")
    write_records(tmp_path / "in.jsonl", RECORDS, response_bytes=200)
    store = tmp_path / "store"
    overrides = overrides_for(
        tmp_path,
        f"workers.address='{cluster.gcs_address}'",
        "teacher.engine=vllm",
        f"teacher.model='{model}'",
        "teacher.max_model_len=256",
        "teacher.capture=in_engine",
        "teacher.engine_args={kv_cache_memory_bytes = 67108864}",
        *TWO_MACHINES,
        "labels.top_k=16",
        "output.unit_size=4",
    )
    with started(overrides) as job:
        for number, part in enumerate(("stage", "actor")):
            wait_for(lambda n=number: units_done(store) >= 2 * (n + 1), job, timeout_sec=400)
            (follower,) = cluster.processes("ray::Follower")
            engine = engine_processes(cluster)
            # Beside it are small helpers; titles depend on the environment.
            stage = max(follower.children(), key=lambda child: child.memory_info().rss)
            os.kill(stage.pid if part == "stage" else follower.pid, signal.SIGKILL)
            killed_at = time.monotonic()
            wait_for(lambda n=number: len(events(store, "worker_ready")) == n + 2, job, timeout_sec=400)
            print(f"{part} killed: an engine is ready again after {time.monotonic() - killed_at:.1f} s")
            # Nothing is left of the engine that died.
            wait_for(lambda parts=engine: have_ended(parts), job)
        engine = engine_processes(cluster)
        exit_status, output = job.finish(timeout_sec=400)
    assert exit_status == 0, output
    reasons = [death["reason"] for death in events(store, "engine_died")]
    assert ["on a further machine has ended" in reasons[0], "a further machine of" in reasons[1]] == [
        True,
        True,
    ]
    assert_exactly_once(tmp_path, RECORDS)
    engines.assert_labels_are_those_of_transformers(store, model)
    wait_until(lambda: groups(cluster, "CREATED") == {})
    wait_until(lambda: have_ended(engine))


def engine_processes(cluster: nodes.RayNodes) -> list[psutil.Process]:
    """The replica's actors and all below them."""
    actors = cluster.processes("ray::Worker", "ray::Follower")
    return [*actors, *(child for actor in actors for child in actor.children(recursive=True))]
