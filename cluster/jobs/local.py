"""A Ray cluster of several nodes on this machine, to try things out: up, and down again.

Everything started is written to a state file with its process id and start time, and only that is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from cluster.errors import ClusterError
from cluster.jobs.local_state import STATE_FILE, LocalCluster, LocalNode, read_state
from cluster.jobs.network.access import bearer_headers, ensure_token, find_token
from cluster.jobs.network.address import Way
from cluster.jobs.network.connection import list_nodes
from labeler.job.processes import process_start
from logitstore.common.whole_file import write_whole

HEAD_IP = "127.0.0.2"
"""Ray replaces 127.0.0.1 by the machine's own address, which other machines could reach."""
START_TIMEOUT_SEC = 180.0
AGENT_PORTS = (
    "metrics-export-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
)
PORTS = range(20_000, 32_000)
"""Above the range that Ray gives its workers by default, and below the kernel's ephemeral ports."""
START_TRIES = 2
"""On a busy machine Ray itself gives up on a node after 15 to 30 seconds; the next try is usually quicker."""
STOP_TIMEOUT_SEC = 20.0
OBJECT_STORE_BYTES = 100_000_000
NODE_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's control store and nodes listen on every interface: only who has the token may use them.
    "RAY_AUTH_MODE": "token",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "150",
    # `down` ends at once; who wants a job to drain first says `stop`.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


class NodeEndedError(ClusterError):
    """A node's process ended while it was starting."""


def up(num_nodes: int, state_folder: Path, *, cpus_per_node: int) -> LocalCluster:
    """Start a head and `num_nodes - 1` further nodes; returns when all have joined.

    Raises:
        ClusterError: one is already up, or a node did not start; what had started is stopped again.
    """
    state_file = state_folder / STATE_FILE
    state_folder.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        raise ClusterError(
            f"{state_file} says that a local cluster is up at {read_state(state_folder).address}; use it, or "
            "stop it first with: penumbra cluster down"
        )
    ensure_token()
    folder = Path(tempfile.mkdtemp(prefix="penumbra-ray-"))
    gcs_port, dashboard_port = _free_ports(2)
    cluster = LocalCluster(f"http://127.0.0.1:{dashboard_port}", f"{HEAD_IP}:{gcs_port}", str(folder), ())
    attempt = cluster
    try:
        for index in range(num_nodes):  # one after another: nodes that share a folder race at their start
            ip = HEAD_IP if index == 0 else f"127.0.0.{10 + index}"
            options = _head(gcs_port, dashboard_port, folder) if index == 0 else _further(cluster, ip)
            for tries_left in reversed(range(START_TRIES)):
                node = _start(ip, [*options, *_of_every_node(cpus_per_node)], folder)
                attempt = replace(cluster, nodes=(*cluster.nodes, node))
                write_whole(state_file, json.dumps(asdict(attempt), indent=2))
                try:
                    _wait_for_nodes(attempt, folder)
                    break
                except NodeEndedError:
                    _stop_all((node,))
                    if not tries_left:
                        raise
            cluster = attempt
    except BaseException:
        _stop_all(attempt.nodes)
        state_file.unlink(missing_ok=True)
        raise
    return cluster


def _head(gcs_port: int, dashboard_port: int, folder: Path) -> list[str]:
    """Options of `ray start` for the first node."""
    return [
        "--head",
        f"--node-ip-address={HEAD_IP}",
        f"--port={gcs_port}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard_port}",
        f"--temp-dir={folder}",
    ]


def _further(cluster: LocalCluster, ip: str) -> list[str]:
    """Options of `ray start` for a node that joins the first."""
    return [f"--address={cluster.gcs_address}", f"--node-ip-address={ip}"]


def _of_every_node(num_cpus: int) -> list[str]:
    return [
        f"--num-cpus={num_cpus}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--disable-usage-stats",
        "--block",
    ]


def down(state_folder: Path) -> tuple[int, int]:
    """Stop what `up` started and nothing else; how many nodes were still running, of how many.

    Raises:
        ClusterError: no local cluster is noted in the folder.
    """
    cluster = read_state(state_folder)
    num_running = _stop_all(cluster.nodes)
    (state_folder / STATE_FILE).unlink()
    shutil.rmtree(cluster.folder, ignore_errors=True)
    return num_running, len(cluster.nodes)


def _start(ip: str, arguments: list[str], folder: Path) -> LocalNode:
    environment = os.environ | NODE_ENVIRONMENT
    with open(folder / f"node-{ip}.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", *arguments, *agent_ports()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    return LocalNode(ip, process.pid, process_start(process.pid) or "")


def _wait_for_nodes(cluster: LocalCluster, folder: Path) -> None:
    """Until the dashboard counts every node started so far as alive."""
    newest = cluster.nodes[-1]
    deadline = time.monotonic() + START_TIMEOUT_SEC
    while time.monotonic() < deadline:
        _check_alive(newest, folder)
        if count_alive_nodes(cluster.address) >= len(cluster.nodes):
            return
        time.sleep(0.3)
    raise ClusterError(f"node {newest.ip} did not join in {START_TIMEOUT_SEC:.0f} s; see its log in {folder}")


def count_alive_nodes(address: str) -> int:
    """Nodes that a dashboard counts as alive; 0 while it does not answer yet."""
    import requests

    try:
        nodes = list_nodes(Way(address, bearer_headers(find_token())))
    except requests.RequestException:
        return 0
    return sum(1 for node in nodes if node["raylet"].get("state") == "ALIVE")


def _check_alive(node: LocalNode, folder: Path) -> None:
    if process_start(node.pid) != node.started:
        path = folder / f"node-{node.ip}.log"
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1][:800] if lines else "it said nothing"
        raise NodeEndedError(
            f"node {node.ip} ended at its start ({last}); give the command again, or see its log: {path}"
        )


def _stop_all(nodes: tuple[LocalNode, ...]) -> int:
    """SIGTERM to every node, the head last; SIGKILL to what stays of them, drivers of jobs included."""
    started = {node.pid: process_start(node.pid) for node in nodes}
    running = [node for node in reversed(nodes) if started[node.pid] == node.started]
    # A process id stays taken while its session has members, so a dead leader's session is still its own.
    members: dict[int, str] = {}
    for node in nodes:
        if started[node.pid] in (node.started, None):
            members |= node_processes(node.pid)
    for node in running:
        os.kill(node.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_SEC
    for node in running:
        while process_start(node.pid) == node.started and time.monotonic() < deadline:
            _reap(node.pid)
            time.sleep(0.1)
    for pid, member_started in members.items():
        if process_start(pid) == member_started:
            os.kill(pid, signal.SIGKILL)
            _reap(pid)
    return len(running)


def _reap(pid: int) -> None:
    """Collect the process if it is a child of this one; `down` is usually another process than `up`."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def node_processes(leader: int) -> dict[int, str]:
    """Process ids and start times of a node: the leader's session, and what descends from it."""
    done = subprocess.run(["ps", "-eo", "pid=,ppid=,sess="], capture_output=True, text=True, check=True)
    table = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    found = {pid for pid, _, session in table if session == leader}
    size = 0
    while size < len(found):
        size = len(found)
        found |= {pid for pid, parent, _ in table if parent in found}
    return {pid: started for pid in found if (started := process_start(pid)) is not None}


def agent_ports() -> list[str]:
    """Arguments of `ray start`.

    With ports chosen here a node need not wait for its agents to say theirs, for which Ray allows only
    15 seconds: too little on a busy machine.
    """
    ports = _free_ports(len(AGENT_PORTS))
    return [f"--{name}={port}" for name, port in zip(AGENT_PORTS, ports, strict=True)]


def _free_ports(count: int) -> list[int]:
    """Different ports that are free now, and most likely still when Ray comes to them."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ClusterError(
        f"no {count} ports are free between {PORTS.start} and {PORTS.stop}; end what holds them"
    )
