"""Notices that the head of a Ray cluster is gone.

Ray says nothing of it for a minute, in which actors elsewhere may even work on, and then ends the driver's
process on the spot. A driver that knows earlier can end in good order and let another take over.
"""

from __future__ import annotations

import socket
import time

from labeler.errors import ClusterLostError

CHECK_SEC = 2.0
"""So often the head is asked whether it is there."""
HEAD_PATIENCE_SEC = 10.0
"""A head that does not answer for so long is gone, and its cluster with it."""


class HeadWatch:
    """Call `note` often."""

    def __init__(self, head_address: str) -> None:
        self._address = head_address
        self._heard_sec = self._asked_sec = time.monotonic()
        self.is_gone = False

    @property
    def is_in_contact(self) -> bool:
        """Whether the head has answered of late."""
        return time.monotonic() - self._heard_sec < 2 * CHECK_SEC

    def answers(self) -> bool:
        """Whether the head takes connections now. Calls to it without one block for a minute."""
        host, _, port = self._address.rpartition(":")
        self._asked_sec = time.monotonic()
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CHECK_SEC).close()
        except OSError:
            return False
        self._heard_sec = time.monotonic()
        return True

    def note(self) -> None:
        """Raises ClusterLostError once the head has not answered for too long."""
        if time.monotonic() - self._asked_sec >= CHECK_SEC:
            self.answers()
        if time.monotonic() - self._heard_sec > HEAD_PATIENCE_SEC:
            self.is_gone = True
            raise ClusterLostError(
                f"Ray's head at {self._address} has not answered for {HEAD_PATIENCE_SEC:.0f} s. Start a "
                "cluster and run the same command again; what is labeled stays"
            )
