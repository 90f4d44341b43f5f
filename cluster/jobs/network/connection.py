"""Ray's client of one cluster, and the dashboard's list of its nodes."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError, ClusterUnreachableError
from cluster.jobs.network.access import bearer_headers, find_token
from cluster.jobs.network.address import Way
from cluster.jobs.network.answers import known_form, meaning_of
from cluster.jobs.network.headers import HEADERS_VARIABLE
from cluster.jobs.network.log_tail import tail

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

QUICK_SEC = 5
"""In which a dashboard says its version and its nodes."""
ANSWER_SEC = 60
"""In which it begins to answer anything else; Ray's client would wait without limit."""
PASSED_ON_BYTES_PER_SEC = 1 << 20
"""At least this quickly a proxy passes on a file that it took as a whole; the answer comes only then."""


def connect(way: Way) -> tuple[JobSubmissionClient, Way]:
    """The client, and the way with the header by which the cluster knows who asks."""
    import requests
    from ray.dashboard.modules.job.common import JobSubmitResponse
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Follows no redirection: it would show headers with secrets to another server, and a request that
        sends something would arrive there as one that only asks."""

        def _do_request(
            self, method: str, endpoint: str, *, data: Any = None, **options: Any
        ) -> requests.Response:
            wait_sec: tuple[float, float] = (QUICK_SEC, ANSWER_SEC)
            if data:
                # Bytes would have to be sent within the first of the two as a whole. A file is sent in
                # blocks, each of which may take so long: a way may be slow, and is left where it stands.
                wait_sec = (ANSWER_SEC, ANSWER_SEC + len(data) / PASSED_ON_BYTES_PER_SEC)
                data = io.BytesIO(data)
            kept = {"timeout": wait_sec, "allow_redirects": False}
            answer = super()._do_request(method, endpoint, data=data, **{**kept, **options})
            if answer.is_redirect:
                raise meaning_of(self._address, answer)
            if (method, endpoint) == ("POST", "/api/jobs/") and answer.ok:
                with known_form(self._address):
                    JobSubmitResponse(**answer.json())
            return answer

        def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            verify = True if self._ssl_context is None else self._ssl_context
            return tail(f"{self._address}/api/jobs/{job_id}/logs/tail", self._headers, verify)

    # The token is not shown to a server that does not ask for one.
    asked = _get(way, "/api/version")
    if asked.status_code == requests.codes.unauthorized:
        way = replace(way, headers={**bearer_headers(find_token(), way.headers), **way.headers})
    else:
        _check_version(way, asked)
    return Client(way.url, headers=dict(way.headers), verify=way.verify), way


def list_nodes(way: Way) -> list[dict[str, Any]]:
    """The nodes as the dashboard describes them. Raises requests.RequestException."""
    import requests

    answer = _get(way, "/nodes", view="summary")
    if answer.status_code != requests.codes.ok:
        raise requests.HTTPError(f"HTTP {answer.status_code}", response=answer)
    try:
        return answer.json()["data"]["summary"]
    except (KeyError, TypeError):
        raise requests.JSONDecodeError("no nodes in the answer", answer.text, 0) from None


def require_ray() -> None:
    """Raises ClusterError where Ray's client is not installed."""
    try:
        import ray.job_submission  # noqa: F401
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"submitting needs Ray's client ({error.name} is missing): pip install 'ray[default]' in the "
            "cluster's version"
        ) from None
    for handler in logging.getLogger("ray").handlers:  # else it tells of every upload and connection
        handler.setLevel(logging.WARNING)


def _get(way: Way, path: str, **query: str) -> Any:
    import requests

    return requests.get(
        f"{way.url}{path}",
        params=query,
        headers=dict(way.headers),
        verify=way.verify,
        timeout=QUICK_SEC,
        allow_redirects=False,
    )


def _check_version(way: Way, answer: Any) -> None:
    """Raises ClusterError where the answer is not that of a Ray dashboard."""
    import requests

    status = answer.status_code
    if status == requests.codes.forbidden and "Invalid authentication token" in answer.text:
        raise ClusterUnreachableError(
            f"the Ray cluster at {way.url} takes the Authorization header for its own token and refuses it; "
            'have the proxy before it remove the header (nginx: proxy_set_header Authorization ""), or '
            "give the token there"
        )
    if status == requests.codes.forbidden:
        raise ClusterUnreachableError(
            f"{way.url} refused the request (403), as a proxy that wants a header of its own does; give it "
            f"by --header NAME=VALUE, --header @FILE or {HEADERS_VARIABLE}"
        )
    if status in (requests.codes.not_found, requests.codes.method_not_allowed):
        raise ClusterUnreachableError(
            f"{way.url} is not the dashboard of a Ray cluster (HTTP {status} for /api/version); check the "
            "port, and the path where a proxy gives it one"
        )
    if status != requests.codes.ok:
        raise meaning_of(way.url, answer)
    found = answer.json()
    if not isinstance(found, dict) or not isinstance(found.get("ray_version"), str):
        raise requests.JSONDecodeError("no version of Ray", answer.text, 0)
