"""What the answers of a Ray cluster mean: it is gone or in trouble, wants a token, or refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from cluster.errors import ClusterError, ClusterTroubleError, ClusterUnreachableError, WrongAccessError
from cluster.jobs.network import access
from cluster.jobs.network.address import PROXY_VARIABLES

if TYPE_CHECKING:
    from requests import RequestException, Response

TROUBLE_STATUSES = (429, 502, 503, 504)
"""By which a proxy says that what is behind it does not answer now, or is asked too often."""
RESUMED = "jobs whose head died are resumed by submitting the same job file again"
MOST_SHOWN = 500
"""Characters of an answer."""


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Turn the ways Ray's client fails into two: the cluster is gone, or it refused."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except ClusterError:
        raise
    except AuthenticationError:
        raise ClusterUnreachableError(
            f"the Ray cluster at {address} asks for a token and has not accepted yours; {access.HELP}"
        ) from None
    except requests.exceptions.HTTPError as error:
        if error.response is None:
            raise
        raise meaning_of(address, error.response) from None
    except requests.exceptions.RequestException as error:
        raise _not_answered(address, error) from None
    except (TimeoutError, ConnectionError) as error:
        raise ClusterUnreachableError(
            f"the Ray cluster at {address} stopped answering ({str(error)[:200]}); {RESUMED}"
        ) from None
    except UnicodeEncodeError:  # of http.client, whose message shows a part of the secret
        raise _bad_header(address) from None
    except RuntimeError as error:
        found = re.match(r"Request failed with status code (\d+): (.*)\.$", str(error), re.DOTALL)
        status, body = (int(found[1]), found[2]) if found else (0, str(error))
        raise meaning(address, status, body) from None


@contextmanager
def known_form(address: str) -> Iterator[None]:
    """Around what reads an answer and sends nothing that could be wrong: that would be no fault of the
    cluster's."""
    from pydantic import ValidationError

    try:
        yield
    except (ValidationError, TypeError, KeyError, AttributeError) as error:
        raise ClusterError(
            f"the answer of {address} has a form that the Ray here does not know ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]}); install the cluster's version of Ray here, or check "
            "that a Ray cluster is there"
        ) from None


def meaning_of(address: str, answer: Response) -> ClusterError:
    return meaning(address, answer.status_code, answer.text, answer.headers.get("Location", ""))


def meaning(address: str, status: int, body: str, location: str = "") -> ClusterError:
    """What an answer other than 200 means: a refusal, or trouble of the head or of a proxy.

    Ray's own refusals come with status 500 as well, as the text of a traceback: its last exception is shown.
    """
    if status in TROUBLE_STATUSES or "Server got itself in trouble" in body:
        return ClusterTroubleError(
            f"the Ray cluster at {address} is in trouble (HTTP {status}: {_in_words(body)[:200]}); ask again "
            f"in a while; {RESUMED}"
        )
    if 300 <= status < 400:
        there = _elsewhere(address, location)
        to, remedy = (f", to {there}", f"give --address {there}") if there else ("", "check its path")
        return ClusterUnreachableError(
            f"{address} sends requests elsewhere (HTTP {status}{to}), as a login page or a proxy that wants "
            f"https:// does; {remedy} where the cluster is there, or give the header by which the proxy "
            "knows you (--header)"
        )
    if status == 407:
        return ClusterUnreachableError(
            f"a proxy on the way to {address} wants a user and password (HTTP 407); write them into "
            "HTTP_PROXY or HTTPS_PROXY as http://USER:PASSWORD@PROXY:PORT, or name the head in NO_PROXY"
        )
    if status == 413:
        return ClusterError(
            f"a proxy before {address} does not take files as large as those of this job (HTTP 413); keep "
            "the input on s3://, leave out --ship-code, or raise its limit (nginx: client_max_body_size)"
        )
    if "Traceback (most recent call last)" in body:
        body = re.split(r"^(?=\w[\w.]*: )", body, flags=re.MULTILINE)[-1]
    return ClusterError(f"the Ray cluster at {address} refused: {_in_words(body)[:MOST_SHOWN]}")


def _elsewhere(address: str, location: str) -> str:
    """Where a redirection leads, as an address, without what may be a secret; "" for no other server."""
    given = urlsplit(address)
    with suppress(ValueError):
        found = urlsplit(urljoin(address, "".join(filter(str.isprintable, location))))
        name = found.hostname or ""
        host = f"[{name}]" if ":" in name else name
        port = found.port or (443 if found.scheme == "https" else 80)
        # The path of the address is the user's own; what a redirection appends may be anything.
        path = given.path if found.path.startswith(f"{given.path}/") else ""
        there = f"{found.scheme}://{host}:{port}{path}"
        if found.scheme in ("http", "https") and re.fullmatch(r"[\w.:-]{1,253}", name, re.ASCII):
            return "" if (found.scheme, name, port) == (given.scheme, given.hostname, given.port) else there
    return ""


def _not_answered(address: str, error: RequestException) -> ClusterError:
    """What a request without an answer, or with one that is no JSON, means."""
    from requests import exceptions

    match error:
        case exceptions.InvalidHeader():  # whose message shows the header
            return _bad_header(address)
        case exceptions.InvalidURL():  # of the proxy: the address has been read already
            return ClusterUnreachableError(
                f"{address} is not reached: what {PROXY_VARIABLES} names is no URL of a proxy; write it as "
                "http://PROXY:PORT, or name the head in NO_PROXY"
            )
        case exceptions.InvalidSchema():
            return ClusterUnreachableError(
                f"the proxy on the way to {address} cannot be used here ({error}); pip install "
                "'requests[socks]', or name the head in NO_PROXY"
            )
        case exceptions.ProxyError():
            return _proxy_is_silent(address)
        case exceptions.SSLError():
            return ClusterUnreachableError(
                f"no trusted connection to {address} ({str(error)[-200:]}); give the certificates by "
                "--verify CA, or write http:// where it speaks no TLS"
            )
        case exceptions.JSONDecodeError():
            return ClusterUnreachableError(
                f"{address} is no Ray cluster: it answered with what is no answer of Ray, as a login page "
                "or another program does; check the address and its path, or give the header by which a "
                "proxy knows you (--header)"
            )
        case exceptions.ReadTimeout():
            return ClusterTroubleError(f"the Ray cluster at {address} does not answer in time; {RESUMED}")
        case exceptions.ConnectionError() if "SOCKSConnection(" in str(error):  # never a ProxyError
            return _proxy_is_silent(address)
    return ClusterUnreachableError(
        f"the Ray cluster at {address} stopped answering or is no Ray cluster ({type(error).__name__}: "
        f"{str(error)[:200]}); {RESUMED}"
    )


def _proxy_is_silent(address: str) -> ClusterUnreachableError:
    return ClusterUnreachableError(
        f"{address} is not reached: the proxy that {PROXY_VARIABLES} names does not answer, or does not "
        "reach it; correct it, or name the head in NO_PROXY"
    )


def _bad_header(address: str) -> WrongAccessError:
    return WrongAccessError(
        f"{address} cannot be asked: the token or a header has a newline, or a letter that no header can "
        f"carry; {access.HELP}"
    )


def _in_words(body: str) -> str:
    """An answer in one line; of a page its title, or its text."""
    if re.match(r"\s*<(!doctype|html|head|body)\b", body, re.IGNORECASE):
        title = re.search(r"<title[^>]*>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
        body = title[1] if title else re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", body, flags=re.DOTALL)
    return " ".join(body.split()) or "nothing is said"
