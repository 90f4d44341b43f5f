"""Which CPU cores each engine gets, so that no two engines of a machine share one.

vLLM's own choice gives every engine of a machine the same cores.
"""

from __future__ import annotations

from labeler.records import Placement


class CoreBook:
    """Hands out `num_cores` cores per actor, node by node, and takes them back."""

    def __init__(self, num_cores: int) -> None:
        self._num_cores = num_cores
        self._taken: dict[int, tuple[str, tuple[int, ...]]] = {}

    def take(self, placement: Placement, actor: int) -> str:
        """Cores for the actor, as in "0,2". Where a node has too few, the least used ones are shared."""
        uses = dict.fromkeys(placement.cores, 0)
        for node_id, cores in self._taken.values():
            if node_id == placement.node_id:
                for core in cores:
                    uses[core] = uses.get(core, 0) + 1
        by_use = sorted(placement.cores, key=lambda core: (uses[core], core))
        cores = tuple(sorted(by_use[: self._num_cores]))
        self._taken[actor] = (placement.node_id, cores)
        return ",".join(str(core) for core in cores)

    def free(self, actor: int) -> None:
        self._taken.pop(actor, None)
