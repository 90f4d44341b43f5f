"""Ray for one job: a cluster of its own on this machine, or one that is there already."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from labeler.config.loading import JobConfig
from labeler.errors import ClusterLostError
from labeler.on_ray.lacking import RAY_JOB_VARIABLE
from logitstore.common.config_file import ConfigError

if TYPE_CHECKING:
    from ray.job_config import JobConfig as JobConfigOfRay

OBJECT_STORE_BYTES = 100 * 2**20
"""Small: labels never go through Ray, only rows of commits do."""
START_ATTEMPTS = 3
"""A machine under load may need more than one to start Ray."""


@contextmanager
def ray_for(job: JobConfig) -> Iterator[None]:
    """Connect, and disconnect at the end; a cluster started here ends with it.

    Raises ConfigError if the cluster named by the job cannot be reached, or none is named and one is needed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without it Ray 2.60 leaves every GPU visible to actors that asked for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    import ray

    if job.workers.machines > 1 and job.workers.address is None:
        raise ConfigError(
            f"workers.machines = {job.workers.machines} needs a Ray cluster of that many; set "
            "workers.address or RAY_ADDRESS to one"
        )
    _connect(job)
    try:
        with redirect_stdout(sys.stderr):  # where Ray tells that a worker has died
            yield
    except ClusterLostError:
        # There is nobody to take leave of: trying blocks for a minute, and Ray's own end without it crashes.
        atexit.register(_end_without_ray)
        raise
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def _end_without_ray() -> None:
    """Ends the process, whose job has failed; runs before what Ray registered."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _connect(job: JobConfig) -> None:
    import ray

    address = job.workers.address
    for attempt in reversed(range(START_ATTEMPTS)):
        try:
            if address is None:
                _start_here(job)
            else:
                ray.init(
                    address=address,
                    job_config=_job_config(),
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            return
        # Ray raises a bare Exception when its own processes are slow to start (30 s, not settable).
        except Exception as error:  # noqa: BLE001
            ray.shutdown()
            if attempt and address is None:
                continue
            where = address if address is not None else "on this machine"
            raise ConfigError(
                f"workers.address: no Ray cluster can be used at {where!r} ({error}); start one, correct the "
                "address, or leave it out to use this machine alone"
            ) from None


def _start_here(job: JobConfig) -> None:
    import ray

    ray.init(
        address="local",
        job_config=_job_config(),
        num_cpus=max(os.cpu_count() or 1, job.workers.replicas * job.workers.cores),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def _job_config() -> JobConfigOfRay:
    """Workers import our code from where it was imported here, never from the current folder.

    Ray puts the current folder first on its workers' path, where a user's own `labeler.py` would stand before
    ours; only what it takes for its client's jobs is left alone. A submitted job has a folder of its own.
    """
    from ray.job_config import JobConfig as JobConfigOfRay

    if RAY_JOB_VARIABLE in os.environ:
        return JobConfigOfRay()
    root = str(Path(__file__).resolve().parents[2])
    return JobConfigOfRay(_client_job=True, _py_driver_sys_path=[root])
