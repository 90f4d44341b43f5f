"""What `penumbra cluster up` notes of the cluster that it started, by which other commands find it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import JobRefusedError

STATE_FILE = "local-cluster.json"


class NoLocalClusterError(JobRefusedError):
    """No local cluster is noted."""


@dataclass(frozen=True, slots=True)
class LocalNode:
    """One `ray start --block`; its children share a session with it, but for the drivers of jobs."""

    ip: str
    pid: int
    started: str
    """When the process began, so that another process of its id is not mistaken for it."""


@dataclass(frozen=True, slots=True)
class LocalCluster:
    address: str
    """Address of the dashboard and the Jobs API."""
    gcs_address: str
    """For `ray.init(address=...)`."""
    folder: str
    """Logs and sockets."""
    nodes: tuple[LocalNode, ...]


def default_state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "penumbra"


def read_state(state_folder: Path) -> LocalCluster:
    """What `up` has noted. Raises NoLocalClusterError, and JobRefusedError for a file that says nothing."""
    state_file = state_folder / STATE_FILE
    try:
        raw = json.loads(state_file.read_text(encoding="utf-8"))
        nodes = tuple(LocalNode(**node) for node in raw.pop("nodes"))
        cluster = LocalCluster(**raw, nodes=nodes)
    except FileNotFoundError:
        raise NoLocalClusterError(
            f"no local cluster is up: {state_file} does not exist; start one with: "
            "penumbra cluster up --local 2"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _damaged(state_file) from None
    texts = (cluster.address, cluster.gcs_address, cluster.folder)
    if not all(isinstance(text, str) and text for text in texts):
        raise _damaged(state_file)
    if not all(isinstance(one.pid, int) and one.pid > 1 and isinstance(one.started, str) for one in nodes):
        raise _damaged(state_file)
    return cluster


def _damaged(state_file: Path) -> JobRefusedError:
    return JobRefusedError(
        f"{state_file} is cut off, or of another version, and does not say which local cluster is up; end "
        "what `ps -ef` shows of `ray start --block`, if anything, and remove the file"
    )
