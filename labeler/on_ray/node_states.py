"""Which of a cluster's nodes are alive, and which are about to go."""

from __future__ import annotations

from collections.abc import Collection

import ray

from labeler.on_ray.head_watch import HeadWatch


class NodeStates:
    """A head that does not answer is asked nothing: calls to it block for a minute."""

    def __init__(self, head: HeadWatch) -> None:
        self._head = head

    def are_alive(self, node_ids: Collection[str]) -> bool:
        """Whether all of them are; no where the head does not say."""
        if not self._head.answers():
            return False
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}.issuperset(node_ids)

    def about_to_go(self) -> Collection[str]:
        """The ids of nodes with a spot notice or a scale-down; none where the head does not say."""
        if not self._head.answers():
            return ()
        from ray._private.state import state

        return state.get_draining_nodes()
