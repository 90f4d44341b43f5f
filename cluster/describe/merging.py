"""Parts of a description that its user adds: merged deeply into what is rendered, before it is validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(rendered: Any, added: Any) -> Any:
    """`rendered` with `added` laid over it; neither is changed.

    Tables are merged key by key. In lists whose items have names (containers, volumes, variables) an item is
    merged with the one of its name; all other items of a list are appended. Anything else replaces what was
    there.
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
            result[index] = merged(result[index], item)
    return result


def _name(item: Any) -> str | None:
    name = item.get("name") if isinstance(item, Mapping) else None
    return name if isinstance(name, str) else None
