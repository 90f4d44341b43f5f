"""What an interpreter of the cluster lacks, by what it said, and what to do about it."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec

from labeler.config.loading import JobConfig

RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for what runs as a submitted job."""
OURS = ("labeler", "logitstore")
_MODULE = re.compile(r"No module named '?(\w+)")
_NOT_FOUND = re.compile(r"exit code 127\b")


def remedy_of(text: str) -> str:
    """The remedy for what `text`, an error or the end of a log, says is missing; "" for anything else."""
    if found := _MODULE.search(text):
        name = found[1]
        if name in OURS:
            return (
                f"the interpreter of the cluster has no {name}: submit with --ship-code, which sends it, or "
                "with --python PATH of an environment on the nodes that has it"
            )
        return f"the interpreter that ran it has no {name}: {install_remedy(name)}"
    if _NOT_FOUND.search(text):
        return "the cluster's head has no such interpreter: submit with --python PATH of one that is there"
    return ""


def install_remedy(package: str) -> str:
    """What to do where the nodes' interpreter lacks a package that is not ours."""
    extra = "api" if package == "openai" else "label"
    return (
        f"install it there (pip install '.[{extra}]' in the project's folder), or submit with --python PATH "
        "of an environment on the nodes that has it, or with --runtime-env FILE that brings it"
    )


def check_engine_here(job: JobConfig) -> str:
    """Before anything is planned: "" where this interpreter has the engine's package or another may have it.

    A submitted job's replicas run the same interpreter on nodes that may hold more than the head: for those a
    warning is returned. Raises ModuleNotFoundError where the replicas run here.
    """
    if job.teacher.engine != "vllm" or find_spec("vllm") is not None:
        return ""
    if RAY_JOB_VARIABLE in os.environ:
        remedy = remedy_of("No module named 'vllm'")
        return f"where the driver runs, {remedy}. Other nodes may have it"
    if job.workers.address is None:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
    return ""
