"""Stubs of Slurm's commands, and the check of a script that they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def assert_bash(folder: Path, text: str) -> Path:
    """The script as a file, which bash parses and shellcheck finds nothing wrong with."""
    script = folder / "job.sh"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    return script


def installed(
    folder: Path, tools: dict[str, str], *, node_list: str, num_nodes: str, job_id: str
) -> dict[str, str]:
    """The environment of a job that finds these tools, bodies of bash scripts, in place of Slurm's."""
    for name, body in tools.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:/usr/bin:/bin",
        "NOTES": str(folder / "notes"),
        "SLURM_JOB_NODELIST": node_list,
        "SLURM_JOB_NUM_NODES": num_nodes,
        "SLURM_JOB_ID": job_id,
        "SLURM_CPUS_PER_TASK": "48",
    }


def fake_slurm(folder: Path, job_status: str, slurm_state: str) -> dict[str, str]:
    """scontrol, srun and a python that note how they were called; the job waits for its signal."""
    tools = {
        "scontrol": 'case "$*" in "show hostnames"*) printf "n1\\nn2\\n";; '
        f'"show job"*) echo "   JobState={slurm_state} Reason=None";; *) echo "scontrol $*" >> "$NOTES";; esac',
        "srun": 'echo "srun $*" >> "$NOTES"; case "$*" in *hostname*) echo "127.0.1.1 fd00::5 10.0.0.1 10.9.9.9";; *"rm -rf"*|*mkdir*) ;; *) sleep 60;; esac',
        "python": f'case "$*" in *labeler*) trap \'echo drained >> "$NOTES"; exit {job_status}\' TERM;; esac\n'
        'echo "python $*" >> "$NOTES"\n'
        'case "$*" in *labeler*) for _ in $(seq 1200); do sleep 0.1; done;; esac',
    }
    return installed(folder, tools, node_list="n[1-2]", num_nodes="4", job_id="77")


def traps_sigterm(process_id: int) -> bool:
    status = Path(f"/proc/{process_id}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught & 1 << (signal.SIGTERM - 1))


def stub_pyxis(folder: Path) -> dict[str, str]:
    """Slurm for one node: srun notes its options and runs the command, in a container or not, here."""
    tools = {
        "scontrol": 'case "$*" in "show hostnames"*) echo n1;; "show job"*) echo "JobState=RUNNING";; '
        '*) echo "scontrol $*" >> "$NOTES";; esac',
        "srun": 'echo "srun $*" >> "$NOTES"\nwhile [[ "$1" == --* ]]; do shift; done\n'
        'case "$*" in *hostname*) echo 10.0.0.1;; *) exec "$@";; esac',
        "enroot": "exit 0",
        "python": 'case "$*" in *labeler*) trap "echo drained >> $NOTES; exit 4" TERM;; esac\n'
        'echo "python $*" >> "$NOTES"\n'
        'case "$*" in *" status "*) ;; *) for _ in $(seq 1200); do sleep 0.1; done;; esac',
    }
    return installed(folder, tools, node_list="n1", num_nodes="1", job_id=str(os.getpid()))
