"""The way to a cluster's dashboard, in the forms that Ray's own command line takes.

A path before the API (an ingress), a user and password, IPv6, further headers (an authenticating proxy),
certificates of a company's own, and proxies of the environment.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from cluster.errors import ClusterUnreachableError, WrongAccessError
from cluster.jobs.network.headers import headers_of

CONNECT_TIMEOUT_SEC = 5.0
DEFAULT_PORT = 8265
PROXY_VARIABLES = "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


@dataclass(frozen=True, slots=True)
class Way:
    """How requests reach one cluster."""

    url: str
    """Without user or password, so that it may be shown."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request; may hold secrets."""
    verify: bool | str = True
    """Whether the server's certificate is checked, or the file or folder of certificates to check it by."""


def find_way(
    address: str,
    headers: Sequence[str] = (),
    verify: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Way:
    """The way to `address` with `NAME=VALUE` headers, or `@FILE` with such lines, those of RAY_JOB_HEADERS
    below them.

    Raises:
        WrongAccessError: an address, header or certificate that is none.
    """
    found = headers_of(headers, environ)
    parts = _parts(address)
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        found.setdefault("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
    return Way(normalise_address(address), found, _verify(verify))


def normalise_address(address: str) -> str:
    """`http://HEAD:8265` for `HEAD` and `HEAD:8265`, and for what is already whole; a path stays, without `/`
    at its end, and a user and password go.

    Raises:
        WrongAccessError: the text is no such address.
    """
    parts = _parts(address)
    name = parts.hostname or ""
    host = f"[{name}]" if ":" in name else name
    path = parts.path.rstrip("/")
    # Behind a path stands a proxy, on its scheme's own port.
    default = 443 if parts.scheme == "https" else 80 if path else DEFAULT_PORT
    return f"{parts.scheme}://{host}:{parts.port or default}{path}"


def shown(address: str) -> str:
    """What is no address, without a user's name and password, for messages: nobody knows where those end."""
    scheme, separator, rest = address.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else address.rpartition("@")[2]


def is_loopback(address: str) -> bool:
    """Whether the address is this machine's own; another machine may be behind it, through a tunnel."""
    host = urlsplit(normalise_address(address)).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def refuse_silent_address(way: Way) -> None:
    """Fail within seconds where Ray's client would wait without limit.

    Where a proxy of the environment leads there, only the proxy knows the name. Loopback never goes by
    a proxy.
    """
    if is_loopback(way.url):
        _keep_from_proxies(urlsplit(way.url).hostname or "")
    elif _goes_by_proxy(way.url):
        return
    parts = urlsplit(way.url)
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_TIMEOUT_SEC):
            return
    except OSError as error:
        raise ClusterUnreachableError(
            f"no Ray cluster answers at {way.url} ({error}); check that the head runs, that its dashboard "
            "is on (ray start --head --dashboard-host) and that the port is reachable, for example through "
            "ssh -L 8265:localhost:8265 HEAD"
        ) from None


def _parts(address: str) -> SplitResult:
    """Raises WrongAccessError, without a password in it."""
    with contextlib.suppress(ValueError):  # no IPv6 address between brackets, no port, no name of a machine
        parts = urlsplit(_with_scheme(address))
        (parts.hostname or "").encode("idna")  # as the resolver does, whose error would end the command
        is_place = parts.hostname and parts.port != 0 and not parts.query and not parts.fragment
        # A newline would be left out, and another machine be asked.
        if parts.scheme in ("http", "https") and is_place and address.isprintable():
            return parts
    raise WrongAccessError(
        f"address {shown(address)!r} is not the dashboard of a Ray cluster; it must look like "
        "http://HEAD:8265, or http://HOST/PATH where a proxy gives it a path"
    )


def _with_scheme(address: str) -> str:
    if "://" in address:
        return address
    bare_ipv6 = address.count(":") > 1 and re.fullmatch(r"[0-9A-Fa-f:.]+(%.+)?", address) is not None
    return f"http://[{address}]" if bare_ipv6 else f"http://{address}"


def _goes_by_proxy(url: str) -> bool:
    import requests.utils

    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    scheme, separator, _ = (proxy or "").partition("://")
    if separator and scheme.lower() not in PROXY_SCHEMES:  # a library would show its password
        raise ClusterUnreachableError(
            f"the proxy that {PROXY_VARIABLES} names for {url} has the scheme {scheme!r}; it must be one of "
            f"{', '.join(PROXY_SCHEMES)}; correct it, or name the head in NO_PROXY"
        )
    return proxy is not None


def _keep_from_proxies(host: str) -> None:
    """Changes this process's environment: Ray's client takes its proxies for every address."""
    for variable in ("no_proxy", "NO_PROXY"):
        hosts = [one for one in os.environ.get(variable, "").split(",") if one]
        if host not in hosts:
            os.environ[variable] = ",".join([*hosts, host])


def _verify(given: str | None) -> bool | str:
    if given is None or given.lower() in ("true", "1"):
        return True
    if given.lower() in ("false", "0"):
        return False
    if not os.path.exists(given):
        raise WrongAccessError(
            f"--verify {given!r} is neither true, false nor a file or folder of certificates here"
        )
    return given
