"""What a namespace of the level "restricted" refuses in a pod (Kubernetes' Pod Security Standards)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.describe.kubernetes.pod_rules import items_of, table_of, texts_of

ALLOWED_VOLUMES = frozenset(
    (
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    )
)


def problems_if_restricted(spec: Mapping[str, Any]) -> Iterator[str]:
    """Sentences for what such a namespace would refuse."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"{name} is forbidden"
    for volume in items_of(spec, "volumes"):
        for kind in sorted(volume.keys() - {"name"} - ALLOWED_VOLUMES):
            yield f"volume {volume.get('name')!r} is of {kind}, which is forbidden"
    pod = table_of(spec, "securityContext")
    for container in (*items_of(spec, "initContainers"), *items_of(spec, "containers")):
        own = table_of(container, "securityContext")
        for problem in (*_of_rights(own), *_of_user({**pod, **own})):
            yield f"container {container.get('name')!r}: {problem}"
        if any(port.get("hostPort") for port in items_of(container, "ports")):
            yield f"container {container.get('name')!r}: hostPort is forbidden"


def _of_rights(own: Mapping[str, Any]) -> Iterator[str]:
    capabilities = table_of(own, "capabilities")
    if own.get("privileged"):
        yield "securityContext.privileged is forbidden"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "securityContext.allowPrivilegeEscalation must be false"
    if "ALL" not in texts_of(capabilities, "drop"):
        yield 'securityContext.capabilities.drop must be ["ALL"]'
    if added := sorted(set(texts_of(capabilities, "add")) - {"NET_BIND_SERVICE"}):
        yield f"securityContext.capabilities.add: {', '.join(added)} is forbidden"


def _of_user(both: Mapping[str, Any]) -> Iterator[str]:
    if both.get("runAsNonRoot") is not True:
        yield "securityContext.runAsNonRoot must be true"
    if both.get("runAsUser") == 0:
        yield "securityContext.runAsUser is 0, which is root"
    profile = table_of(both, "seccompProfile").get("type")
    if profile not in ("RuntimeDefault", "Localhost"):
        yield f"securityContext.seccompProfile.type is {profile!r}; it must be RuntimeDefault or Localhost"
