"""Finding a dataset's state in whatever a checkpoint or a loader wrapped around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

STATE_KIND = "penumbra.logit-dataset"


def find_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The one state in a nesting of dictionaries and lists.

    Workers each hold the place of their own next step; the smallest of them is the first step that was
    not handed over, as loaders take workers in turn. Raises ValueError if there is none.
    """
    states = list(_states(state))
    if not states:
        raise ValueError(
            "there is no state of a StreamingLogitDataset in this dictionary; pass what its state_dict(), or "
            "the state_dict() of a loader over it, returned"
        )
    return dict(min(states, key=lambda found: (found["epoch"], found["consumed"])))


def _states(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if value.get("kind") == STATE_KIND:
            yield value
            return
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _states(item)
