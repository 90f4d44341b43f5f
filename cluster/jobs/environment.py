"""The environment that a user gives a job: variables, and parts of Ray's runtime environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import JobRefusedError
from labeler.job.person import OWNER_VARIABLE
from logitstore.common.command import nearest
from logitstore.common.secrets import secret_places

OWNED_RUNTIME_ENV = {
    "working_dir": "the job's own folder travels there; use --files and --ship-code",
    "env_vars": "use --env NAME=VALUE",
    "py_executable": "use --python",
}
"""Parts of Ray's runtime environment that `submit` sets itself, and what to use instead."""
OWNED_VARIABLES = {
    "RAY_JOB_STOP_WAIT_TIME_S": "set workers.drain_sec of the job",
    OWNER_VARIABLE: "use --owner",
}
"""Variables that `submit` sets itself, and what to use instead."""


def read_runtime_env(path: str | None) -> dict[str, Any]:
    """`--runtime-env FILE`, as YAML or JSON. Raises JobRefusedError."""
    if path is None:
        return {}
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobRefusedError(f"--runtime-env {path}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise JobRefusedError(f"--runtime-env {path} is nested too deeply to be read") from None
    if not isinstance(found, dict):
        raise JobRefusedError(
            f"--runtime-env {path} must hold a table of Ray's runtime environment, for example pip: [rich]"
        )
    for name, remedy in OWNED_RUNTIME_ENV.items():
        if name in found:
            raise JobRefusedError(f"--runtime-env {path}: {name} is set by `submit` itself; {remedy}")
    if "image_uri" in found:
        raise JobRefusedError(
            f"--runtime-env {path}: Ray runs an image_uri without a folder of the job, and a job's settings "
            "travel in one; start the cluster's nodes from that image, or name packages by pip, uv or conda"
        )
    if re.search(r"://[^/\s]*:[^/\s]*@", _as_sent(found, path)):
        raise JobRefusedError(
            f"--runtime-env {path} holds an address with a password, and what is submitted is shown to "
            "everyone who reaches the cluster; set the credentials on the cluster's nodes"
        )
    _check_runtime_env(found, path)
    return found


def _as_sent(found: dict[str, Any], path: str) -> str:
    try:
        return json.dumps(found, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise JobRefusedError(
            f"--runtime-env {path} holds what JSON cannot carry ({error}); write dates in quotes, numbers "
            "that are finite, and no part within itself"
        ) from None


def _check_runtime_env(found: dict[str, Any], path: str) -> None:
    """By Ray's own rules, where its client is installed; a part that it does not know it would pass over."""
    try:
        from ray.runtime_env import RuntimeEnv
    except ModuleNotFoundError:
        return
    known = sorted(RuntimeEnv.known_fields - OWNED_RUNTIME_ENV.keys())
    unknown = [name for name in found if name not in known]
    if unknown and "RAY_RUNTIME_ENV_PLUGINS" not in os.environ:
        raise JobRefusedError(
            f"--runtime-env {path}: Ray has no {unknown[0]!r}; {nearest(str(unknown[0]), known)}"
        )
    try:
        RuntimeEnv(**found)
    except (TypeError, ValueError, OSError) as error:
        raise JobRefusedError(
            f"--runtime-env {path} is refused by Ray: {' '.join(str(error).split())}; correct it there"
        ) from None
    # What Ray takes from a program of its own only, and refuses once the files of a job are being sent.
    if not isinstance(found.get("worker_process_setup_hook") or "", str):
        raise JobRefusedError(
            f"--runtime-env {path}: worker_process_setup_hook must name a function, such as module.function"
        )
    for module in found.get("py_modules") or ():
        if "://" not in module and not module.endswith(".whl") and not os.path.isdir(module):
            raise JobRefusedError(
                f"--runtime-env {path}: py_modules has {module!r}, and a job takes folders, .whl files and "
                "addresses; put a single file into a folder and name that"
            )


def parse_env(pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE` arguments. Raises JobRefusedError for names that hold secrets."""
    found = []
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise JobRefusedError(f"--env {name!r} must look like NAME=VALUE")
        if name in OWNED_VARIABLES:
            raise JobRefusedError(f"--env {name} is set by `submit` itself; {OWNED_VARIABLES[name]}")
        if next(secret_places({name: value}, "env_vars"), None) is not None:
            raise JobRefusedError(
                f"--env {name}: a job's environment is shown on the cluster's dashboard, so secrets may not "
                "travel in it; set the variable on the cluster's nodes, or give them a role that needs none"
            )
        found.append((name, value))
    return tuple(found)
