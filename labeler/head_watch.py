"""Notices that a whole Ray cluster is gone, of which Ray itself says nothing for a minute and more."""

from __future__ import annotations

import socket
import time

from labeler.messages import ClusterLostError

SILENCE_SEC = 2.0
"""When nothing in the cluster has answered for so long, its head is asked whether it is there."""
HEAD_PATIENCE_SEC = 10.0
"""A head that does not answer for so long is gone, and everything in its cluster with it."""


class HeadWatch:
    """To be told of every answer from the cluster, and of every wait without one."""

    def __init__(self, head_address: str) -> None:
        self._address = head_address
        self._heard_sec = time.monotonic()
        self.is_gone = False

    @property
    def is_in_contact(self) -> bool:
        """Whether something in the cluster has answered of late."""
        return time.monotonic() - self._heard_sec < 2 * SILENCE_SEC

    def answers(self) -> bool:
        """Whether the head takes connections now. Calls to it without one block for a minute."""
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=SILENCE_SEC).close()
        except OSError:
            return False
        self._heard_sec = time.monotonic()
        return True

    def note(self, *, any_answer: bool) -> None:
        """Raises ClusterLostError once the head has not answered for too long."""
        silent_sec = time.monotonic() - self._heard_sec
        if any_answer:
            self._heard_sec = time.monotonic()
        elif silent_sec > SILENCE_SEC and self.answers():
            return
        elif silent_sec > HEAD_PATIENCE_SEC:
            self.is_gone = True
            raise ClusterLostError(
                f"Ray's head at {self._address} has not answered for {HEAD_PATIENCE_SEC:.0f} s. Start a "
                "cluster and run the same command again; what is labeled stays"
            )
