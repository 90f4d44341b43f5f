"""A cluster of real nodes, some of which lack what a replica needs: found before any replica starts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.jobs.running_job import started, units_done, wait_for
from tests.labeler import nodes
from tests.labeler.jobs import (
    assert_exactly_once,
    events,
    held,
    let_go,
    overrides_for,
    run_job,
    status_of,
    write_records,
)
from tests.labeler.lacking_interpreter import interpreter_without

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
GOOD, LACKING = "127.0.0.41", "127.0.0.42"
RECORDS = 40


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nodes.RayNodes]:
    with nodes.ray_nodes(tmp_path / "state", monkeypatch) as cluster:
        cluster.join(GOOD)
        yield cluster


def test_a_job_is_refused_for_the_node_that_lacks_a_package(cluster: nodes.RayNodes, tmp_path: Path) -> None:
    """And said on demand, node by node; with the node gone, the same command labels everything."""
    cluster.join(LACKING, python=interpreter_without(tmp_path / "env", "zstandard"))
    write_records(tmp_path / "in.jsonl", RECORDS)
    overrides = overrides_for(tmp_path, f"workers.address='{cluster.gcs_address}'", "workers.replicas=1")
    job = tmp_path / "job.toml"
    job.write_text("")
    looked = subprocess.run(
        [sys.executable, "-P", "-m", "labeler", "nodes", str(job), "--json"]
        + [part for override in overrides for part in ("--set", override)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert looked.returncode == 2, looked.stderr
    seen = json.loads(looked.stdout)
    assert {node["ip"]: "zstandard" in node["packages"] for node in seen["nodes"]} == {
        GOOD: True,
        LACKING: False,
    }
    assert seen["without_room"] == 1
    assert not (tmp_path / "store").exists(), "looking leaves something behind"

    done = run_job(overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"({LACKING}): no zstandard in {tmp_path}/env/bin/python" in done.stderr
    assert f"({GOOD})" not in done.stderr
    assert "--python PATH" in done.stderr
    assert events(tmp_path / "store", "worker_ready") == []

    cluster.end(LACKING)
    done = run_job(overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_exactly_once(tmp_path, RECORDS)


def test_no_engine_is_loaded_on_a_node_that_joins_and_lacks_something(
    cluster: nodes.RayNodes, tmp_path: Path
) -> None:
    """The second replica finds room there, is given up with the reason, and the first one labels everything."""
    write_records(tmp_path / "in.jsonl", RECORDS)
    store = tmp_path / "store"
    python = interpreter_without(tmp_path / "env", "zstandard")
    overrides = overrides_for(
        tmp_path,
        f"workers.address='{cluster.gcs_address}'",
        "workers.restarts=0",
        *held(tmp_path, 0.05),
    )
    with started(overrides) as job:
        wait_for(lambda: units_done(store) >= 1, job)
        cluster.join(LACKING, python=python)
        wait_for(lambda: bool(events(store, "replica_given_up")), job)
        let_go(tmp_path)
        exit_status, output = job.finish()
    assert exit_status == 0, output
    (given_up,) = events(store, "replica_given_up")
    assert "No module named 'zstandard'" in given_up["reason"]
    assert "--python PATH" in given_up["reason"]
    assert f"on {LACKING}" in given_up["reason"]
    assert len(events(store, "worker_ready")) == 1
    assert_exactly_once(tmp_path, RECORDS)


def test_a_node_that_cannot_start_the_jobs_interpreter_is_not_waited_for(
    cluster: nodes.RayNodes, tmp_path: Path
) -> None:
    """Without Ray in it, no process of that interpreter ever answers: the others' answers have to do."""
    cluster.join(LACKING)
    write_records(tmp_path / "in.jsonl", RECORDS)
    python = interpreter_without(tmp_path / "env", "ray")
    code = (
        "import ray, json; from labeler.config.loading import load_job; "
        "from labeler.on_ray import node_probes; "
        f"ray.init({cluster.gcs_address!r}, runtime_env={{'py_executable': {str(python)!r}}}, "
        "log_to_driver=False); "
        "node_probes.PATIENCE_SEC = 5.0; "
        f"job = load_job(None, {overrides_for(tmp_path, 'workers.start_sec=20')!r}, {{}}); "
        "seen = node_probes.NodeProbes(job, 'x', print).ask_all(); "
        "print(json.dumps(seen.as_record()))"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    note, record = done.stdout.strip().splitlines()[-2:]
    assert note.startswith("2 of the nodes have not answered within 5 s")
    seen = json.loads(record)
    assert len(seen["silent"]) == 2
    assert "cannot start the job's interpreter" in seen["problem"]
    assert time.monotonic() - begun < 90
    assert status_of(tmp_path / "store") is None
