"""Nodes that are not this machine: reached through a tunnel, and one of three cut off in the middle of a job."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from cluster.jobs import local
from logitstore.__main__ import main as verify_store
from logitstore.store import LogitStore
from tests.cluster.jobs.network.namespaces import NamespacedCluster, can_make_namespaces
from tests.cluster.jobs.small_jobs import ALL_IDS, num_shards, run, stored_ids, wait_until, write_job
from tests.servers.fault_proxy import Faults, fault_proxy

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and network namespaces"),
]


def test_a_node_cut_off_in_the_middle_loses_and_doubles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without a drain at the end, and with leases that expire quickly: the cut node cannot give its units back.
    job = write_job(tmp_path, seconds_per_token=0.04, fields="lease_sec = 5")
    store = tmp_path / "store"
    with NamespacedCluster(num_workers=2) as cluster:
        with fault_proxy(cluster.address, Faults()) as tunnel:  # as at the near end of `ssh -L`
            status, _, err = run(capsys, "submit", str(job), "--address", tunnel)
        assert status == 2
        assert "lies on this machine" in err
        address = ("--address", cluster.address, "--files", "same")
        status, out, err = run(capsys, "submit", str(job), *address, "--python", sys.executable)
        assert status == 0, err
        job_id = out.strip()
        wait_until(lambda: num_shards(store) >= 2)
        cluster.cut(1)
        num_at_cut = num_shards(store)
        assert num_at_cut < len(ALL_IDS) // 2, "the job was over before the cut"
        cut_at = time.monotonic()
        # Two leases of the other node at the most, then more than it held at the cut.
        wait_until(lambda: num_shards(store) >= num_at_cut + 3)
        print(
            f"recovery: the third unit after the cut was labeled {time.monotonic() - cut_at:.1f} s after it"
        )
        wait_until(lambda: local.count_alive_nodes(cluster.address) == 2)  # Ray gave the node up
        cluster.heal(1)
        (tmp_path / "slow").unlink()
        assert run(capsys, "logs", job_id, "--address", cluster.address, "--follow")[0] == 0
        progress = json.loads(run(capsys, "status", job_id, "--address", cluster.address, "--json")[1])[
            "progress"
        ]
    assert verify_store(["verify", str(store), "--against", str(tmp_path / "in.jsonl")]) == 0
    assert stored_ids(store) == ALL_IDS
    assert progress["state"] == "finished"
    shards = {entry.name.removeprefix("shards/") for entry in LogitStore.open(str(store)).shards()}
    assert {path.name for path in (store / "shards").iterdir()} >= shards
