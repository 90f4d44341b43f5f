"""Who runs a job: what its runs and its submissions to a cluster are told apart by."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping

OWNER_VARIABLE = "PENUMBRA_OWNER"


def person_here(environ: Mapping[str, str] = os.environ) -> str:
    """PENUMBRA_OWNER, which a submission sets for its driver, else user@host."""
    return environ.get(OWNER_VARIABLE) or f"{_user()}@{socket.gethostname()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return str(os.getuid())
