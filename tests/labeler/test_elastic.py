"""Replicas that leave and join while a job runs: a node with a spot notice, and one that comes later."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cluster import local
from tests.labeler.jobs import (
    assert_exactly_once,
    events,
    overrides_for,
    started,
    units_done,
    wait_for,
    write_records,
)

RECORDS = 240


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A head without room for a replica, and one node with room for one."""
    for name, value in local.NODE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    cluster = local.up(1, tmp_path / "state", cpus_per_node=0)
    nodes = [join(cluster, "127.0.0.31")]
    yield cluster, nodes
    for node in nodes:
        end(node)
    local.down(tmp_path / "state")


def ray_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


def join(cluster: local.LocalCluster, ip: str) -> subprocess.Popen[bytes]:
    """Start a node with one core that joins the cluster."""
    arguments = [f"--address={cluster.gcs_address}", f"--node-ip-address={ip}", "--num-cpus=1"]
    size = f"--object-store-memory={local.OBJECT_STORE_BYTES}"
    with open(Path(cluster.folder) / f"node-{ip}.log", "wb") as log:
        return subprocess.Popen(
            ray_command("start", *arguments, size, "--disable-usage-stats", "--block"),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(node: subprocess.Popen[bytes]) -> None:
    for process_id in local.node_processes(node.pid):
        os.kill(process_id, 9)
    node.wait(10)


def give_notice(cluster: local.LocalCluster, node_id: str, seconds: int) -> None:
    """What an autoscaler tells Ray of a spot node that is about to be taken back."""
    done = subprocess.run(
        ray_command(
            *("drain-node", "--address", cluster.gcs_address, "--node-id", node_id),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"),
            *("--deadline-remaining-seconds", str(seconds)),
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def node_id_of(cluster: local.LocalCluster, ip: str) -> str:
    code = f"import ray; ray.init({cluster.gcs_address!r}, log_to_driver=False, logging_level='ERROR'); print([n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == {ip!r}][0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def when(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_spot_notice_moves_the_replica_to_a_node_that_joins(cluster: Any, tmp_path: Path) -> None:
    """Two replicas wanted and room for one: it leaves with its node, and both come up on two later ones."""
    ray_cluster, nodes = cluster
    write_records(tmp_path / "in.jsonl", RECORDS)
    store = tmp_path / "store"
    overrides = overrides_for(
        tmp_path,
        f"workers.address='{ray_cluster.gcs_address}'",
        "teacher.fake.seconds_per_token=0.004",
        "output.unit_size=4",
        "workers.drain_sec=30",
    )
    with started(overrides) as job:
        wait_for(lambda: units_done(store) >= 2, job)
        assert len(events(store, "worker_ready")) == 1
        node_id = node_id_of(ray_cluster, "127.0.0.31")
        noticed_at = time.time()
        give_notice(ray_cluster, node_id, 60)
        wait_for(lambda: bool(events(store, "worker_left")), job)
        (left,) = events(store, "worker_left")
        print(f"the replica had left {when(left) - noticed_at:.1f} s after the notice")
        # What was in the engine is committed, and nothing begins on the node that goes.
        given_back = len(events(store, "gave_back"))
        assert units_done(store) == len(events(store, "leased")) - given_back
        end(nodes[0])
        joined_at = time.time()
        nodes += [join(ray_cluster, "127.0.0.32")]
        wait_for(lambda: len(events(store, "worker_ready")) == 2, job)
        print(f"a replica was at work {time.time() - joined_at:.1f} s after a node was started")
        nodes += [join(ray_cluster, "127.0.0.33")]
        wait_for(lambda: len(events(store, "worker_ready")) == 3, job)
        exit_status, output = job.finish()
    assert exit_status == 0, output
    assert "0 failures" in output, "leaving in time is no failure"
    assert_exactly_once(tmp_path, RECORDS)
