"""A Ray cluster on this machine whose nodes come, go, and claim what resources a test wants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from cluster.jobs import local
from cluster.jobs.local_state import LocalCluster
from cluster.jobs.network.access import bearer_headers, find_token
from cluster.jobs.network.address import Way
from cluster.jobs.network.connection import list_nodes

JOIN_TRY_SEC = 60.0


class RayNodes:
    """A head without room for anything, and the nodes that have joined it."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def gcs_address(self) -> str:
        return self._cluster.gcs_address

    def join(self, ip: str, *, cpus: int = 1, gpus: int = 0, python: str | Path = sys.executable) -> None:
        """Start a node of an interpreter and wait until it counts. GPUs are only claimed."""
        arguments = [f"--address={self.gcs_address}", f"--node-ip-address={ip}"]
        sizes = [f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        sizes.append(f"--object-store-memory={local.OBJECT_STORE_BYTES}")
        log_path = Path(self._cluster.folder) / f"node-{ip}.log"
        deadline, next_try = time.monotonic() + local.START_TIMEOUT_SEC, 0.0
        while not self._is_alive(ip):
            assert time.monotonic() < deadline, f"node {ip} did not join: {log_path.read_text()[-2000:]}"
            # On a busy machine Ray itself may give up on a node, or wait for it in vain.
            if ip in self._nodes and (self._nodes[ip].poll() is not None or time.monotonic() >= next_try):
                self.end(ip)
            if ip not in self._nodes:
                next_try = time.monotonic() + JOIN_TRY_SEC
                with open(log_path, "ab") as log:
                    self._nodes[ip] = subprocess.Popen(
                        _ray(
                            *("start", *arguments, *local.agent_ports(), *sizes),
                            *("--disable-usage-stats", "--block"),
                            python=python,
                        ),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
            time.sleep(0.3)

    def _is_alive(self, ip: str) -> bool:
        try:
            raylets = [
                node["raylet"]
                for node in list_nodes(Way(self._cluster.address, bearer_headers(find_token())))
            ]
        except requests.RequestException:
            return False
        return any(
            (raylet.get("nodeManagerAddress"), raylet.get("state")) == (ip, "ALIVE") for raylet in raylets
        )

    def end(self, ip: str) -> None:
        """`kill -9` of a node and all that runs on it."""
        node = self._nodes.pop(ip)
        for process_id in local.node_processes(node.pid):
            with suppress(ProcessLookupError):  # some end with the one killed before them
                os.kill(process_id, 9)
        node.wait(60)

    def end_all(self) -> None:
        for ip in list(self._nodes):
            self.end(ip)

    def give_notice(self, node_id: str, seconds: int) -> None:
        """What an autoscaler tells Ray of a spot node that is about to be taken back."""
        done = subprocess.run(
            _ray(
                *("drain-node", "--address", self.gcs_address, "--node-id", node_id),
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"),
                *("--deadline-remaining-seconds", str(seconds)),
            ),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def ask(self, expression: str) -> Any:
        """What a Python expression of `ray` and `placement_group_table` comes to, by way of JSON."""
        code = (
            "import json, ray; from ray.util import placement_group_table; "
            f"ray.init({self.gcs_address!r}, log_to_driver=False, logging_level='ERROR'); "
            f"print(json.dumps({expression}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])

    def processes(self, *names: str) -> list[psutil.Process]:
        """What runs on the nodes that have joined and is named like that from the start."""
        found: list[psutil.Process] = []
        for process_id in {pid for node in self._nodes.values() for pid in local.node_processes(node.pid)}:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(process_id)
                if process.name().startswith(names):
                    found.append(process)
        return found

    def node_id(self, ip: str) -> str:
        return self.ask(f"[n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == {ip!r}][0]")


@contextmanager
def ray_nodes(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    """A cluster of which nothing is left afterwards; its token is in the environment."""
    for name, value in local.NODE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    cluster = RayNodes(local.up(1, state, cpus_per_node=0))
    try:
        yield cluster
    finally:
        cluster.end_all()
        local.down(state)


def _ray(*arguments: str, python: str | Path = sys.executable) -> list[str]:
    return [str(python), "-m", "ray.scripts.scripts", *arguments]
