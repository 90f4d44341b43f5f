"""A Ray cluster whose nodes are as good as machines: alone in network, process, mount and name namespaces.

Nothing but the namespaces and the bridge made here is touched; leaving the context removes them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.jobs import local
from cluster.jobs.network.access import ensure_token

FAST_HEALTH_CHECK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
}
"""A node is given up within 13 seconds instead of a minute; not sooner, as it may be only busy."""
AGENT_PORTS = " ".join(f"--{name}={port}" for port, name in enumerate(local.AGENT_PORTS, start=8100))
"""Free in every namespace; without them Ray waits for its agents to say theirs, for 15 seconds at most."""


def can_make_namespaces() -> bool:
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "unshare", "mount")):
        return False
    name = f"pn{os.getpid()}probe"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    ip("netns", "del", name)
    return True


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class NamespacedCluster:
    """A head without CPUs (node 0) and workers with one each, on a bridge of their own."""

    def __init__(self, num_workers: int) -> None:
        self._tag = os.getpid() % 10_000
        self._net = f"10.77.{os.getpid() % 200 + 20}"
        self._bridge = f"pbr{self._tag}"
        self._folder = Path(tempfile.mkdtemp(prefix="pnr-", dir="/tmp"))
        self._num_nodes = num_workers + 1
        self._processes: list[subprocess.Popen[bytes]] = []
        self._namespaces: list[str] = []
        self.address = f"http://{self._net}.10:8265"

    def __enter__(self) -> Self:
        ensure_token()
        try:
            ip("link", "add", self._bridge, "type", "bridge")
            ip("addr", "add", f"{self._net}.1/24", "dev", self._bridge)
            ip("link", "set", self._bridge, "up")
            for index in range(self._num_nodes):
                self._connect(index)
            (self._folder / "mnt").mkdir()
            self._start(0, "--head --port=6379 --num-cpus=0 --dashboard-host=0.0.0.0 --dashboard-port=8265")
            self._wait_for_nodes(1)
            for index in range(1, self._num_nodes):
                self._start(index, f"--address={self._net}.10:6379 --num-cpus=1")
            self._wait_for_nodes(self._num_nodes)
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clean()

    def cut(self, index: int) -> None:
        ip("link", "set", f"pv{self._tag}x{index}", "down")

    def heal(self, index: int) -> None:
        ip("link", "set", f"pv{self._tag}x{index}", "up")

    def _connect(self, index: int) -> None:
        name, outer = f"pn{self._tag}x{index}", f"pv{self._tag}x{index}"
        ip("netns", "add", name)
        self._namespaces.append(name)
        ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", outer, "master", self._bridge)
        ip("link", "set", outer, "up")
        ip("-n", name, "addr", "add", f"{self._net}.1{index}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")

    def _start(self, index: int, arguments: str) -> None:
        own, shared = self._folder / f"node{index}", self._folder / "mnt"
        own.mkdir()
        script = (
            f"echo node{index} > /proc/sys/kernel/hostname && "
            f"mount --bind {own} {shared} && mount -t tmpfs -o size=1g tmpfs /dev/shm && "
            f"exec {sys.executable} -m ray.scripts.scripts start {arguments} {AGENT_PORTS} "
            f"--node-ip-address={self._net}.1{index} --object-store-memory=100000000 --disable-usage-stats --block --temp-dir={shared}"
        )
        in_namespaces = (
            f"ip netns exec {self._namespaces[index]} unshare -u -p -f --kill-child=KILL --mount-proc"
        )
        with open(self._folder / f"node{index}.log", "wb") as log:
            process = subprocess.Popen(
                [*in_namespaces.split(), "bash", "-c", script],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | local.NODE_ENVIRONMENT | FAST_HEALTH_CHECK,
            )
        self._processes.append(process)

    def _wait_for_nodes(self, count: int) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            if local.count_alive_nodes(self.address) >= count:
                return
            time.sleep(0.3)
        logs = "\n".join(path.read_text(errors="replace")[-500:] for path in self._folder.glob("*.log"))
        raise TimeoutError(f"{count} nodes were not up in 180 s\n{logs}")

    def _clean(self) -> None:
        for process in self._processes:
            process.kill()  # takes the node's whole process namespace with it
            process.wait()
        for name in self._namespaces:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._bridge], check=False, capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)
