"""The processes of a running job's engines and of its Ray cluster, to be killed one by one."""

from __future__ import annotations

from contextlib import suppress

import psutil

from benchmarks.jobs.running_job import RunningJob


def engine_parts(job: RunningJob) -> tuple[list[int], list[int]]:
    """Process ids of the engine cores below the actors, and of the vLLM workers below those.

    By descent: the titles that vLLM gives them do not appear in every environment.
    """
    cores = [core for actor in job.actors() for core in _children(actor)]
    return cores, [worker for core in cores for worker in _children(core)]


def ray_parts(job: RunningJob, name: str) -> list[int]:
    """Process ids of "raylet" or "gcs_server"."""
    return [process_id for process_id, line in job.processes() if line.split(" ")[0].endswith(f"/{name}")]


def _children(process_id: int) -> list[int]:
    """Direct children but for multiprocessing's own helper, which tracks resources."""
    try:
        children = psutil.Process(process_id).children()
    except psutil.NoSuchProcess:
        return []
    found: list[int] = []
    for child in children:
        with suppress(psutil.NoSuchProcess):
            if "resource_tracker" not in " ".join(child.cmdline()):
                found.append(child.pid)
    return found
