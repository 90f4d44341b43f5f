"""Replicas that leave and join while a job runs: a node with a spot notice, and one that comes later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.jobs.running_job import started, units_done, wait_for
from tests.labeler import nodes
from tests.labeler.jobs import assert_exactly_once, events, held, let_go, overrides_for, write_records

RECORDS = 240


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nodes.RayNodes]:
    """A head without room for a replica, and one node with room for one."""
    with nodes.ray_nodes(tmp_path / "state", monkeypatch) as cluster:
        cluster.join("127.0.0.31")
        yield cluster


def when(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_spot_notice_moves_the_replica_to_a_node_that_joins(
    cluster: nodes.RayNodes, tmp_path: Path
) -> None:
    """Two replicas wanted and room for one: it leaves with its node, and both come up on two later ones."""
    write_records(tmp_path / "in.jsonl", RECORDS)
    store = tmp_path / "store"
    overrides = overrides_for(
        tmp_path,
        f"workers.address='{cluster.gcs_address}'",
        *held(tmp_path, 0.006),
        "workers.drain_sec=30",
    )
    with started(overrides) as job:
        wait_for(lambda: units_done(store) >= 2, job)
        assert len(events(store, "worker_ready")) == 1
        node_id = cluster.node_id("127.0.0.31")
        noticed_at = time.time()
        cluster.give_notice(node_id, 60)
        wait_for(lambda: bool(events(store, "worker_left")), job)
        (left,) = events(store, "worker_left")
        print(f"the replica had left {when(left) - noticed_at:.1f} s after the notice")
        # What was in the engine is committed, and nothing begins on the node that goes.
        given_back = len(events(store, "gave_back"))
        assert units_done(store) == len(events(store, "leased")) - given_back
        cluster.end("127.0.0.31")
        # While no replica is at work, so that the job is not over before both nodes are up.
        for ip in ("127.0.0.32", "127.0.0.33"):
            cluster.join(ip)
        joined_at = time.time()
        wait_for(lambda: len(events(store, "worker_ready")) == 3, job)
        print(f"both replicas were at work {time.time() - joined_at:.1f} s after the second node had joined")
        let_go(tmp_path)
        exit_status, output = job.finish()
    assert exit_status == 0, output
    assert "0 failures" in output, "leaving in time is no failure"
    assert_exactly_once(tmp_path, RECORDS)
