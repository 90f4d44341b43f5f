"""A dataset's state: found in whatever a checkpoint or a loader wrapped around it, and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from logitstore.errors import StoreChangedError
from trainer.errors import SettingError

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


def refuse_other_order(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Raises StoreChangedError for a state of other stores than ours, SettingError for another order."""
    if saved["digest"] != mine["digest"]:
        raise StoreChangedError(
            f"the state was saved with stores of digest {saved['digest']}, these have {mine['digest']}: "
            "shards were added or removed, or stores, weights or the held-out part differ. Place "
            f"{saved['consumed']} means something else here; restore the stores, or start anew"
        )
    for name in ("version", "seed", "num_splits", "shuffle", "packing"):
        then = saved.get(name)  # states of old know no packing
        if then != mine[name]:
            raise SettingError(
                f"the state was saved with {name}={then!r}, this dataset has {mine[name]!r}: another "
                f"order. Construct the dataset with {name}={then!r}"
            )
    # States of old know no packed_splits, and packed each of num_splits.
    then = saved.get("packed_splits", saved["num_splits"] if mine["packing"] else None)
    if then != mine["packed_splits"]:
        raise SettingError(
            f"the state was saved by an earlier version, which packed {then} splits where this one packs "
            f"{mine['packed_splits']}: row {saved['consumed']} is another here. Begin anew, or end that "
            "training with the version that began it"
        )


def _states(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if value.get("kind") == STATE_KIND:
            yield value
            return
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _states(item)
