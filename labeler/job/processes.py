"""Which process a process id means: ids are used again, and count on one machine alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SAME_EVERYWHERE = {"TZ": "UTC0", "LC_ALL": "C"}
"""What `ps` says of a time is otherwise in the caller's time zone and language."""


def machine_identity() -> str:
    """Boot and process-id space, so that a process id means something only where it counts; "" where the
    system does not tell them, as macOS."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return ""
    return f"{boot.read_text(encoding='utf-8').strip()}/{os.readlink('/proc/self/ns/pid')}"


def process_start(process_id: int) -> str | None:
    """When a living process began, the same for whoever asks: kernel ticks since the boot, or what `ps` says
    where there is no /proc. None if there is no such process or only its remains."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{process_id}/stat").read_bytes()
        except OSError:
            return None
        fields = stat.rpartition(b")")[2].decode().split()  # a process's name is any bytes
        return None if fields[0] in ("Z", "X") else fields[19]
    command = ["ps", "-o", "stat=,lstart=", "-p", str(process_id)]
    environment = os.environ | SAME_EVERYWHERE
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    state, _, started = done.stdout.strip().partition(" ")
    return started.strip() if started and not state.startswith("Z") else None
