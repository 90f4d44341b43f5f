"""A sweep whose runs are tasks of a real Ray cluster, started as `penumbra cluster up` does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster.jobs import local
from cluster.jobs.local_state import LocalCluster
from trainer.__main__ import main

TASK = "ray::run_here"
"""How Ray names a worker's process while it is at a run."""

NEIGHBOUR = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
task = ray.remote(num_cpus=0)(lambda: time.sleep(1000)).remote()
sys.stdin.read()
print(len(ray.wait([task], timeout=1)[1]), "at work")
"""
"""Another job on the cluster, which tells at the end of its input whether its task still runs."""


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (["--cpus", "2"], "--cpus and --gpus are of runs on a Ray cluster; give --address too"),
        (["--address", "127.0.0.1:9", "--gpus", "1.5"], "--gpus 1.5: Ray gives a part of one GPU"),
        (["--address", "127.0.0.1:9", "--gpus", "0.00001"], "--gpus 1e-05: Ray gives a part of one GPU"),
        (["--address", "127.0.0.1:9"], "pip install '.[train,cluster]', or leave out --address"),
    ],
)
def test_what_a_sweep_on_ray_lacks_is_named(
    options: list[str],
    where: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", *options, "--over", "training.learning_rate=1e-3", *where]) == 2
    assert says in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    state = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in local.NODE_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield local.up(1, state, cpus_per_node=2)
        local.down(state)


def tasks() -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [""])[0] == TASK]


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def sweep_command(cluster: LocalCluster, *arguments: str) -> list[str]:
    command = [sys.executable, "-P", "-m", "trainer", "sweep", "--seeds", "1", *arguments]
    return [*command, "--address", cluster.gcs_address]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_whose_worker_is_killed_is_tried_again_and_a_finished_one_skipped(
    cluster: LocalCluster, options: list[str], tmp_path: Path
) -> None:
    runs = tmp_path / "sweep/runs"
    first, blocked = (runs / f"learning_rate={rate}_seed=0" for rate in ("0.001", "0.1"))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/.sweep-0").write_text("of a sweep that was killed")
    options += ["--set", "training.max_steps=40", "--set", "training.save_steps=5", "--json"]
    options += ["--set", "training.save_total_limit=20"]
    over = ["--over", "training.learning_rate=1e-3", "--restart"]
    process = started(sweep_command(cluster, *options, *over))
    wait_until((first / "checkpoints/checkpoint-10").exists, process)
    saved = first / "checkpoints/checkpoint-5/model.safetensors"
    saved_ns = saved.stat().st_mtime_ns
    (worker,) = tasks()
    assert not (first / "metrics.json").exists()
    worker.kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "1 node; a run takes 1 CPU and 0 GPU" in err
    assert saved.stat().st_mtime_ns == saved_ns, "the second try went on from the first one's checkpoint"
    assert "learning_rate=0.001_seed=0: its worker ended" in err
    assert [run["state"] for run in json.loads(out)["runs"]] == ["finished"]
    written = (first / "model.safetensors").stat().st_mtime_ns

    blocked.mkdir()
    (blocked / "model.safetensors").write_bytes(b"of somebody else")
    process = started(sweep_command(cluster, *options, "--over", "training.learning_rate=1e-3,1e-2,1e-1"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    found = json.loads(out)["runs"]
    assert [run["state"] for run in found] == ["finished before", "finished", "failed"]
    assert found[1]["after"]["kl"] < found[0]["after"]["kl"] < found[0]["before"]["kl"]
    assert "holds a model, and no train.json says" in found[2]["error"]
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert json.loads((tmp_path / "sweep/sweep.json").read_text())["runs"] == found
    assert not list((tmp_path / "sweep").glob(".sweep-*"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_ends_the_tasks_of_the_sweep_alone(
    cluster: LocalCluster, options: list[str], tmp_path: Path
) -> None:
    over = ["--over", "loss.temperature=1,2", "--set", "training.max_steps=1000000"]
    neighbour = subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR, cluster.gcs_address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process = started(sweep_command(cluster, *options, *over))
    wait_until(lambda: len(list((tmp_path / "sweep/runs").glob("*/train.json"))) == 2, process)
    assert len(tasks()) == 2, "side by side"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    psutil.wait_procs(tasks(), timeout=60)
    assert tasks() == []
    assert neighbour.communicate("", timeout=200)[0].split() == ["1", "at", "work"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a folder that the cluster does not see")
def test_a_folder_that_the_nodes_do_not_share_is_refused(
    cluster: LocalCluster, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sweep").mkdir()
    command = sweep_command(cluster, *options, "--over", "loss.temperature=1,2")
    alone = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"']
    process = started([*alone, str(tmp_path / "sweep"), *command])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert f"output.folder: {tmp_path}/sweep is not the same folder on the node" in err
    assert "give --out a folder that all nodes share" in err
    assert not list((tmp_path / "sweep").iterdir())
