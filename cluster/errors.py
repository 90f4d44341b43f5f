"""What can go wrong between a laptop and a cluster; each kind has its own exit status."""


class ClusterError(Exception):
    """Base; the message states the value found, the rule and the remedy."""

    exit_status = 1


class ClusterUnreachableError(ClusterError, ConnectionError):
    """No Ray cluster answers at the address."""

    exit_status = 3


class ClusterTroubleError(ClusterUnreachableError):
    """The cluster, or a proxy before it, does not answer now and may in a while."""


class JobNotFoundError(ClusterError, LookupError):
    """The cluster knows no such job."""

    exit_status = 5


class JobRefusedError(ClusterError, ValueError):
    """The job cannot be run on this cluster as it is."""

    exit_status = 2
