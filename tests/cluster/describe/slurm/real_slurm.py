"""A real Slurm of two nodes on this machine: its own daemons, on ports of its own, ended by their process."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("n1", "n2")
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
PartitionName=gpu Nodes=ALL Default=YES
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=32000 Gres=gpu:h100:2\n"


def can_run_slurm() -> bool:
    """Debian: apt-get install slurmctld slurmd slurm-client munge."""
    return os.getuid() == 0 and all(map(shutil.which, PROGRAMS))


class SlurmDoesNotRunError(Exception):
    """Its daemons do not come up on this machine, which says nothing of what is rendered."""


class Slurm:
    """Its commands, as a user of it types them."""

    def __init__(self, folder: Path) -> None:
        self.environment = {"PATH": os.environ["PATH"], "SLURM_CONF": str(folder / "slurm.conf")}

    def asked(self, *command: str, cwd: Path | None = None) -> str:
        """What a command prints, which must succeed."""
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of a job, by their names."""
        words = self.asked("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@contextlib.contextmanager
def real_slurm(folder: Path) -> Iterator[Slurm]:
    """Both nodes are idle; everything ends with the block. Raises SlurmDoesNotRunError."""
    controller, *ports = _free_ports(1 + len(NODES))
    host = socket.gethostname()
    nodes = [_NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports, strict=True)]
    text = _CONFIGURATION.format(host=host, controller=controller, folder=folder) + "".join(nodes)
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    for number in range(2):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu Type=h100 File={folder}/gpu[0-1]\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    for name in ("state", *NODES):
        (folder / name).mkdir()
    slurm = Slurm(folder)
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = [f"--{option}={folder}/munge.{name}" for option, name in munge.items()]
    daemons = [["munged", "--foreground", "--force", *munged], ["slurmctld", "-D"]]
    daemons += [["slurmd", "-D", "-N", name] for name in NODES]
    with contextlib.ExitStack() as stack:
        for command in daemons:
            stack.enter_context(_running(command, slurm.environment, folder))
            if command[0] == "munged":
                _wait_until(folder, (folder / "munge.socket").exists)
        _wait_until(folder, lambda: slurm_states(slurm) == ["idle", "idle"])
        try:
            yield slurm
        finally:
            _end_jobs(slurm)


def _end_jobs(slurm: Slurm) -> None:
    """End every job and wait for it: what the daemons have not ended when they go runs on without them."""
    deadline = time.monotonic() + 90  # Slurm itself gives a job 30 s
    while job_ids := slurm.asked("squeue", "--noheader", "--format=%A").split():
        assert time.monotonic() < deadline, f"jobs {job_ids} do not end"
        slurm.asked("scancel", *dict.fromkeys(job_ids))
        time.sleep(0.2)


def _wait_until(folder: Path, is_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_up():
        if time.monotonic() > deadline:
            logs = {path.name: path.read_text()[-500:] for path in sorted(folder.glob("*.log"))}
            raise SlurmDoesNotRunError(f"Slurm's daemons are not up after 60 s: {logs}")
        time.sleep(0.05)


def slurm_states(slurm: Slurm) -> list[str]:
    """Of the nodes; none while the controller does not answer yet."""
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"],
        env=slurm.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.split()


@contextlib.contextmanager
def _running(command: Sequence[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with open(folder / f"{command[0]}.log", "ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
