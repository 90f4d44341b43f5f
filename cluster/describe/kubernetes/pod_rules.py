"""What Kubernetes refuses in a pod though its schema allows it.

KubeRay hands a cluster's pods on as they are: a wrong one is refused when it is to start, long after `kubectl
apply` has taken the cluster, and a job then waits for pods that never come.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cluster.describe.merging import ONE_OF
from cluster.describe.settings.kubernetes_names import LABEL_NAME, LABEL_VALUE, PART_NAME

_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:(m|u|n|k|M|G|T|P|E|[KMGTPE]i)|[eE]([+-]?\d+))?")
_SCALE = {"n": 1e-9, "u": 1e-6, "m": 1e-3, None: 1.0} | {
    f"{letter}{binary}": (1024.0 if binary else 1000.0) ** power
    for binary in ("", "i")
    for power, letter in enumerate(("k" if not binary else "K", "M", "G", "T", "P", "E"), 1)
}
_VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
_POLICIES = ("Always", "OnFailure", "Never")
_SOURCES = ONE_OF - {"value", "valueFrom"}


def problems_of_pod(spec: Mapping[str, Any]) -> Iterator[str]:
    """Sentences for what would be refused, each with the value and the rule."""
    volumes = items_of(spec, "volumes")
    yield from _problems_of_names("volume", volumes)
    for volume in volumes:
        sources = sorted(volume.keys() & _SOURCES)
        if len(sources) > 1:
            yield f"volume {volume.get('name')!r} is of {' and of '.join(sources)}; a volume is of one kind"
    containers = [*items_of(spec, "initContainers"), *items_of(spec, "containers")]
    yield from _problems_of_names("container", containers)
    for container in containers:
        said = f"container {container.get('name')!r}"
        known = {str(volume.get("name")) for volume in volumes}
        for problem in (*_of_mounts(container, known), *_of_variables(container), *_of_resources(container)):
            yield f"{said}: {problem}"
    for name, value in table_of(spec, "nodeSelector").items():
        if not LABEL_NAME.fullmatch(str(name)) or not LABEL_VALUE.fullmatch(str(value)):
            yield f"nodeSelector {name!r} = {value!r} is no label that a node can have"
    for toleration in items_of(spec, "tolerations"):
        yield from _of_toleration(toleration)
    policy = spec.get("restartPolicy", "Always")
    if policy not in _POLICIES:
        yield f"restartPolicy {policy!r} is not one of {', '.join(_POLICIES)}"


def quantity(value: object) -> float | None:
    """What an amount of a resource says; None for what Kubernetes does not take as one."""
    found = _QUANTITY.fullmatch(str(value))
    if found is None or isinstance(value, bool):
        return None
    return float(found[1]) * (10.0 ** int(found[3]) if found[3] else _SCALE[found[2]])


def items_of(place: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The tables of a list; none where the schema is not held and something else stands there."""
    found = place.get(name)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def table_of(place: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table; an empty one where the schema is not held and something else stands there, or nothing."""
    found = place.get(name)
    return found if isinstance(found, Mapping) else {}


def texts_of(place: Mapping[str, Any], name: str) -> list[str]:
    """The items of a list as texts; none where something else stands there, or nothing."""
    found = place.get(name)
    return [str(one) for one in found] if isinstance(found, list) else []


def _problems_of_names(what: str, items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    seen = set()
    for item in items:
        name = str(item.get("name"))
        if not PART_NAME.fullmatch(name):
            yield f"{what} {name!r}: its name has at most 63 small letters, digits and, within, '-'"
        elif name in seen:
            yield f"two {what}s are named {name!r}"
        seen.add(name)


def _of_mounts(container: Mapping[str, Any], volumes: set[str]) -> Iterator[str]:
    seen = set()
    for mount in items_of(container, "volumeMounts"):
        path, name = str(mount.get("mountPath")), str(mount.get("name"))
        if name not in volumes:
            yield f"no volume is named {name!r}, which is mounted at {path}; add it to spec.volumes"
        if not path.startswith("/") or ":" in path:
            yield f"mountPath {path!r} must start with '/' and have no ':'"
        if path in seen:
            yield f"two volumes are mounted at {path}"
        seen.add(path)


def _of_variables(container: Mapping[str, Any]) -> Iterator[str]:
    for variable in items_of(container, "env"):
        name = str(variable.get("name"))
        if not _VARIABLE.fullmatch(name):
            yield f"env {name!r} is no name of a variable"
        if "value" in variable and "valueFrom" in variable:
            yield f"env {name!r} has value and valueFrom; it has one"


def _of_resources(container: Mapping[str, Any]) -> Iterator[str]:
    resources = table_of(container, "resources")
    amounts: dict[str, dict[str, float]] = {"requests": {}, "limits": {}}
    for kind, found in amounts.items():
        for name, value in table_of(resources, kind).items():
            amount = quantity(value)
            if amount is None:
                yield f"{kind}.{name} = {value!r} is no amount; write it as 2, 500m, 200G or 16Gi"
            else:
                found[name] = amount
    for name, limit in amounts["limits"].items():
        asked = amounts["requests"].get(name, limit)
        if asked > limit:
            more, less = (resources[kind][name] for kind in ("requests", "limits"))
            yield f"requests.{name} = {more!r} is above limits.{name} = {less!r}; give both"
        elif asked < limit and "/" in name:
            yield f"requests.{name} and limits.{name} differ, which only cores and memory may; give both"


def _of_toleration(toleration: Mapping[str, Any]) -> Iterator[str]:
    operator, effect = toleration.get("operator", "Equal"), toleration.get("effect", "")
    if effect not in _EFFECTS:
        yield f"toleration: effect {effect!r} is not one of {', '.join(_EFFECTS[1:])}"
    if operator not in ("Exists", "Equal"):
        yield f"toleration: operator {operator!r} is not one of Exists, Equal"
    if operator == "Exists" and toleration.get("value"):
        yield f"toleration of {toleration.get('key')!r}: Exists has no value; set operator to Equal"
    if operator == "Equal" and not toleration.get("key"):
        yield "toleration: without a key it must have the operator Exists"
    if "tolerationSeconds" in toleration and effect != "NoExecute":
        yield f"toleration of {toleration.get('key')!r}: tolerationSeconds needs the effect NoExecute"
