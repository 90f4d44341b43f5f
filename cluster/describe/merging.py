"""Parts of a description that its user adds: merged deeply into what is rendered, before it is validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ONE_OF = frozenset(
    (
        *("value", "valueFrom"),  # of a variable
        *("emptyDir", "hostPath", "persistentVolumeClaim", "configMap", "secret", "nfs", "csi", "ephemeral"),
        *("projected", "downwardAPI", "image", "iscsi", "fc", "cephfs", "rbd", "azureFile", "glusterfs"),
    )
)
"""Keys of which an item with a name has one: where a variable's value, or a volume's files, come from."""
NAMES = ("mountPath", "DeviceName", "name")
"""Keys by which an item of a list is known, the first that it has."""


def merged(rendered: Any, added: Any) -> Any:
    """`rendered` with `added` laid over it; neither is changed.

    Tables are merged key by key. In lists whose items have names (containers, volumes, variables) an item is
    merged with the one of its name; all other items of a list are appended. Anything else replaces what was
    there, as does a volume of another kind, or a variable whose value comes from elsewhere: Kubernetes
    refuses both at once. A mount is known by its path, as one volume may be mounted several times, a disk of
    EC2 by its device, and of Compute Engine's disks the one to boot from by being it.
    """
    if isinstance(rendered, Mapping) and isinstance(added, Mapping):
        both = {name: merged(rendered[name], added[name]) for name in rendered.keys() & added.keys()}
        return {**rendered, **added, **both}
    if isinstance(rendered, list) and isinstance(added, list | tuple):
        return _merged_lists(rendered, list(added))
    return added


def _merged_lists(rendered: list[Any], added: list[Any]) -> list[Any]:
    names = {_name(item): index for index, item in enumerate(rendered) if _name(item) is not None}
    result = list(rendered)
    for item in added:
        index = names.get(_name(item))
        if index is None:
            result.append(item)
        else:
            result[index] = item if _is_another_kind(result[index], item) else merged(result[index], item)
    return result


def _is_another_kind(rendered: Mapping[str, Any], added: Mapping[str, Any]) -> bool:
    """Whether both items of a list say what the thing is, and each in another way."""
    kinds = [item.keys() & ONE_OF for item in (rendered, added)]
    return all(kinds) and kinds[0] != kinds[1]


def _name(item: Any) -> str | None:
    if not isinstance(item, Mapping):
        return None
    if item.get("boot") is True:
        return "boot"
    name = next((item[key] for key in NAMES if key in item), None)
    return name if isinstance(name, str) else None
