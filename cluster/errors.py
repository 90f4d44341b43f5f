"""What can go wrong between a laptop and a cluster; each kind has its own exit status."""

from __future__ import annotations

from logitstore.common.exit_status import ExitStatus


class ClusterError(Exception):
    """Base; the message states the value found, the rule and the remedy."""

    exit_status = ExitStatus.FAILED


class ClusterUnreachableError(ClusterError, ConnectionError):
    """No Ray cluster answers at the address."""

    exit_status = ExitStatus.UNREACHABLE


class WrongAccessError(ClusterError, ValueError):
    """An address, header, token or certificate that could be none of any cluster."""

    exit_status = ExitStatus.WRONG


class ClusterTroubleError(ClusterUnreachableError):
    """The cluster, or a proxy before it, does not answer now and may in a while."""


class JobNotFoundError(ClusterError, LookupError):
    """The cluster knows no such job."""

    exit_status = ExitStatus.BUSY


class JobRefusedError(ClusterError, ValueError):
    """The job cannot be run on this cluster as it is."""

    exit_status = ExitStatus.WRONG
