"""What a job on the cluster says of itself: its settings, and how it was submitted.

Anybody may submit a job with metadata like ours, and other versions write other ones: nothing here is trusted
to have today's form.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cluster.errors import JobRefusedError
from cluster.jobs.client import ClusterJob
from cluster.jobs.submission import JOB_KEY, OPTIONS_KEY, SubmitOptions
from labeler.config.loading import JobConfig, WorkersConfig, load_job
from logitstore.common.config_file import ConfigError
from logitstore.common.terminal import printable_line

OPENED = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Schemes of stores whose address names no server."""


def storage_options_of(job: ClusterJob) -> dict[str, Any]:
    """By which the job's store is opened from this machine.

    Raises JobRefusedError where the job does not say it, and for a store on a server of the job's choice:
    whoever may submit jobs could make this machine ask any.
    """
    scheme, separator, _ = job.store.partition("://")
    if "::" in job.store or (separator and scheme not in OPENED):
        raise JobRefusedError(
            f"the store {printable_line(job.store)} of job {job.submission_id} is on a server that the job "
            "names, which is not asked for it; if you know the server, name the store yourself: penumbra "
            "label status STORE, penumbra cluster cost STORE"
        )
    options = _section(job, "output").get("storage_options")
    if not isinstance(options, dict):
        raise _unknown(job, "it says no output.storage_options")
    return options


def drain_sec_of(job: ClusterJob) -> float:
    """How long the job's units may take to finish once it is stopped; the default where it does not say."""
    try:
        given = _section(job, "workers").get("drain_sec")
    except JobRefusedError:
        given = None
    if isinstance(given, int | float) and 0 <= given < math.inf:
        return float(given)
    return WorkersConfig().drain_sec


def config_of(job: ClusterJob, folder: Path) -> JobConfig:
    """The job's configuration, by way of a file in `folder`. Raises JobRefusedError."""
    file = folder / "earlier.json"
    file.write_text(json.dumps(_settings(job)), encoding="utf-8")
    try:
        return load_job(str(file), environ={})
    except ConfigError as error:
        raise _unknown(job, str(error).removeprefix(f"{file}: ")) from None


def options_of(job: ClusterJob) -> SubmitOptions:
    """The options that the job was submitted with. Raises JobRefusedError."""
    try:
        raw = _table(job, OPTIONS_KEY)
        env_vars = tuple((str(name), str(value)) for name, value in raw["env_vars"].items())
        options = SubmitOptions(
            raw["files"], raw["python"], raw["ship_code"], env_vars, raw.get("runtime_env", {})
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _unknown(job, f"how it was submitted: {type(error).__name__} {error}") from None
    if not isinstance(options.python, str) or not isinstance(options.runtime_env, dict):
        raise _unknown(job, "how it was submitted")
    return options


def _section(job: ClusterJob, name: str) -> dict[str, Any]:
    section = _settings(job).get(name)
    if not isinstance(section, dict):
        raise _unknown(job, f"it has no section {name}")
    return section


def _settings(job: ClusterJob) -> dict[str, Any]:
    return _table(job, JOB_KEY)


def _table(job: ClusterJob, key: str) -> dict[str, Any]:
    try:
        found = json.loads(job.metadata.get(key, ""))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _unknown(job, f"it carries none as {key}, as jobs of other programs do")
    return found


def _unknown(job: ClusterJob, why: str) -> JobRefusedError:
    return JobRefusedError(
        printable_line(
            f"the settings of job {job.submission_id} are not known here ({why}); use the penumbra that "
            f"submitted it, or go on with its store by a job file: {job.store}"
        )
    )
