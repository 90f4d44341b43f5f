"""Whether the GPUs that a job asks for are there, before an engine is waited for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from labeler.config.found import gpus_here
from labeler.config.loading import JobConfig
from labeler.errors import STOPPED_EARLY, StoppedError
from labeler.on_ray.room import lack_of_gpus
from logitstore.common.config_file import ConfigError

JOIN_SEC = 30.0
"""How long the nodes of a cluster that has just started may take to join it."""
STATUS_KEY = b"__autoscaling_status"
"""Where Ray's monitor leaves what its autoscaler, if there is one, has seen."""
NODE_WITHOUT_TYPE = "node_"
"""Begins the monitor's name for a node where no autoscaler is configured."""


def check_gpus(
    job: JobConfig, patience_sec: float = JOIN_SEC, is_stopped: Callable[[], bool] = lambda: False
) -> str:
    """Connected to Ray: "" where the GPUs are there, a warning where they are lacking and may still come.

    Raises ConfigError where no node has them and none will come by itself; StoppedError once `is_stopped`.
    """
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    workers = job.workers
    deadline = time.monotonic() + (0.0 if workers.address is None else patience_sec)
    while (lack := lack_of_gpus(workers, ray.nodes())) and time.monotonic() < deadline:
        if is_stopped():
            raise StoppedError(STOPPED_EARLY)
        time.sleep(1)
    if not lack:
        return ""
    if workers.address is not None and may_grow(_internal_kv_get(STATUS_KEY)):
        return f"{lack}; the job waits, since the cluster may start such nodes by itself"
    if job.limits.wait_sec is not None:
        return f"{lack}; the job waits for limits.wait_sec = {job.limits.wait_sec:g}"
    raise ConfigError(
        f"{lack}, and none will come by itself; set workers.gpus to what a node has, add such nodes, or set "
        "limits.wait_sec to how long the job shall wait for them"
    )


def check_gpus_for_dry_run(job: JobConfig) -> str:
    """As `check_gpus`, of the cluster that the job would join, or of this machine. Starts nothing."""
    if not job.workers.gpus or (job.teacher.engine == "fake" and job.workers.address is None):
        return ""
    if job.workers.address is None:
        lack = lack_of_gpus(job.workers, [{"Alive": True, "Resources": {"GPU": gpus_here()}}])
        if lack and job.limits.wait_sec is None:
            raise ConfigError(
                f"{lack}; set workers.gpus = 0, or workers.address to a Ray cluster that has them"
            )
        return lack
    from labeler.on_ray.runtime import ray_for

    with ray_for(job):
        return check_gpus(job, patience_sec=0)


def may_grow(status: bytes | None) -> bool:
    """Whether an autoscaler may add nodes, by what Ray's monitor left; also where that is not known."""
    try:
        report = json.loads(status or b"")["autoscaler_report"]
        types = [*report["active_nodes"], *(report["idle_nodes"] or ())]
    except (ValueError, KeyError, TypeError):
        return True
    return not types or not all(kind.startswith(NODE_WITHOUT_TYPE) for kind in types)
