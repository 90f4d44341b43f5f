"""What the answers of a Ray cluster mean: it is gone or in trouble, wants a token, or refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.errors import ClusterError, ClusterUnreachableError
from cluster.jobs.network import access

GATEWAY_STATUSES = (502, 503, 504)
"""By which a proxy says that what is behind it does not answer."""


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Turn the ways Ray's client fails into two: the cluster is gone, or it refused."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise ClusterUnreachableError(
            f"the Ray cluster at {address} asks for a token and has not accepted yours; {access.HELP}"
        ) from None
    except (TimeoutError, ConnectionError, requests.exceptions.RequestException) as error:
        raise ClusterUnreachableError(
            f"the Ray cluster at {address} stopped answering or is no Ray cluster ({type(error).__name__}: "
            f"{str(error)[:200]}); jobs whose head died are resumed by submitting the same job file again"
        ) from None
    except RuntimeError as error:
        raise _answered(address, str(error)) from None


def _answered(address: str, text: str) -> ClusterError:
    """What an answer other than 200 means: a refusal, or trouble of the head or of a proxy.

    Ray's own refusals come with status 500 as well, as the text of a traceback: its last exception is shown.
    """
    found = re.match(r"Request failed with status code (\d+): (.*)\.$", text, re.DOTALL)
    status, body = (int(found[1]), found[2]) if found else (0, text)
    if status in GATEWAY_STATUSES or "Server got itself in trouble" in body:
        return ClusterUnreachableError(
            f"the Ray cluster at {address} is in trouble (HTTP {status}: {' '.join(body.split())[:200]}); "
            "ask again in a while; jobs whose head died are resumed by submitting the same job file again"
        )
    if "Traceback (most recent call last)" in body:
        body = re.split(r"^(?=\w[\w.]*: )", body, flags=re.MULTILINE)[-1]
    return ClusterError(f"the Ray cluster at {address} refused: {' '.join(body.split())[:500]}")
