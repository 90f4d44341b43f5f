"""Where a teacher's weights lie on the machines of each kind, and how much room is there for them. Pure."""

from __future__ import annotations

from cluster.describe.settings.cluster import ClusterConfig, GroupConfig, Kind
from cluster.describe.settings.node_paths import is_looked_up
from logitstore.common.config_file import ConfigError

CACHE_FOLDER = "/cache/huggingface"
"""Where `[cache]` is mounted in containers, and what HF_HOME is then."""
IMAGE_GB = 30.0
"""Estimated part of a rented machine's disk for the system, the image and Ray's own files."""
RENTED: tuple[Kind, ...] = ("ray-aws", "ray-gcp", "skypilot")
"""Kinds that say how large the disks of their machines are."""
USED: dict[Kind, tuple[str, ...]] = {
    "ray-aws": ("host_path",),
    "ray-gcp": ("host_path",),
    "ray-on-premise": ("host_path",),
    "kuberay-cluster": ("claim", "host_path", "size_gb"),
    "kuberay-job": ("claim", "host_path", "size_gb"),
    "slurm": ("host_path", "size_gb"),
    "skypilot": ("bucket", "size_gb"),
}
"""Settings of `[cache]` that a kind knows."""


def cache_notes(cluster: ClusterConfig, kind: Kind) -> list[str]:
    """What is to be known of the cache: a setting that this kind has no place for.

    Raises ConfigError for a folder that the kind cannot find.
    """
    given = cluster.cache.given
    if given == "host_path" and given in USED.get(kind, ()) and kind != "slurm":
        _refuse_looked_up(cluster.cache.host_path, kind)
    if not given or kind not in USED or given in USED[kind]:
        return []
    known = " or ".join(f"cache.{name}" for name in USED[kind])
    return [f"WARNING: cache.{given} means nothing here, so every machine fetches the weights: set {known}"]


def _refuse_looked_up(path: str, kind: Kind) -> None:
    if is_looked_up(path):
        raise ConfigError(
            f"cache.host_path = {path!r} is known to a shell of the nodes alone, which {kind} does not ask; "
            "write the whole path, as /mnt/nvme/huggingface"
        )


def room_for_weights_gb(cluster: ClusterConfig, group: GroupConfig, kind: Kind) -> float | None:
    """GB of a machine's disk that weights may take; None where nothing here says it."""
    given = cluster.cache.given if cluster.cache.given in USED.get(kind, ()) else ""
    if given == "size_gb" and kind != "skypilot":
        return float(cluster.cache.size_gb)
    if given and given != "size_gb":
        return None
    if kind in RENTED:
        return disk_gb(cluster, group) + (cluster.cache.size_gb if given else 0) - IMAGE_GB
    return None if group.disk_gb is None else float(group.disk_gb)


def disk_gb(cluster: ClusterConfig, group: GroupConfig) -> int:
    """Disk of a rented machine of the group."""
    return group.disk_gb or cluster.disk_gb
