"""Addresses in every form that Ray's own command line takes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.errors import ClusterUnreachableError, WrongAccessError
from cluster.jobs.network.address import (
    Way,
    find_way,
    is_loopback,
    normalise_address,
    refuse_silent_address,
    shown,
)
from logitstore.common.exit_status import ExitStatus


@pytest.mark.parametrize(
    ("text", "whole", "near"),
    [
        ("head", "http://head:8265", False),
        ("127.0.0.1:9000", "http://127.0.0.1:9000", True),
        ("http://localhost:8265/", "http://localhost:8265", True),
        ("https://ray.example", "https://ray.example:443", False),
        ("http://proxy.example/team/ray/", "http://proxy.example:80/team/ray", False),
        ("https://proxy.example:8443/team", "https://proxy.example:8443/team", False),
        ("http://[::1]:8265", "http://[::1]:8265", True),
        ("::1", "http://[::1]:8265", True),
        ("http://me:secret@head:8265", "http://head:8265", False),
        ("me:secret@head:8265", "http://head:8265", False),
    ],
)
def test_addresses_are_completed(text: str, whole: str, near: bool) -> None:
    assert normalise_address(text) == whole
    assert is_loopback(text) is near
    assert normalise_address(whole) == whole


@pytest.mark.parametrize(
    "text",
    [
        *("ftp://head", "http://", "http://head:port", "http://head:0", "http://head?x=1"),
        *("http://me:secret@:1:2", "me:secret@[::zz]:8265", "http://me:secret@[head]:8265"),
        *("http://me:secret/s@head:8265", "http://me:secret?s@head", "me:secret#s@head:x"),
        *("a..b", "x" * 64, "http://secret\udcff@head", "http://he\nad", "[fe80::1%\udcff]:9", "\u202ehead"),
    ],
)
def test_what_is_no_address_is_told_without_its_password(text: str) -> None:
    with pytest.raises(WrongAccessError, match="must look like http://HEAD:8265") as refused:
        find_way(text, environ={})
    assert "secret" not in str(refused.value)
    assert refused.value.exit_status == ExitStatus.WRONG


def test_users_headers_and_certificates(tmp_path: Path) -> None:
    way = find_way(
        "http://me:p%40ss@head", ["X-Team = nlp"], str(tmp_path), {"RAY_JOB_HEADERS": '{"X-A": "1"}'}
    )
    assert way == Way(
        "http://head:8265",
        {"X-A": "1", "X-Team": "nlp", "Authorization": "Basic bWU6cEBzcw=="},
        str(tmp_path),
    )
    assert "bWU6" not in repr(way)
    assert find_way("head", verify="false", environ={}) == Way("http://head:8265", {}, False)
    assert shown("https://me:p/w@host:x") == "https://host:x"
    for arguments, says in (
        ({"headers": ["X-Team"]}, "NAME=VALUE"),
        ({"verify": "/nowhere/ca.pem"}, "neither true, false nor"),
        ({"environ": {"RAY_JOB_HEADERS": "X: 1"}}, "JSON table"),
    ):
        with pytest.raises(WrongAccessError, match=says):
            find_way("head", **{"environ": {}, **arguments})


def test_a_proxy_is_asked_for_far_names_and_never_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that only the proxy can resolve must not be looked up here."""
    for variable in ("no_proxy", "NO_PROXY", "https_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    refuse_silent_address(Way("http://only-the-proxy-knows.example:8265"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        refuse_silent_address(Way(f"http://127.0.0.1:{server.getsockname()[1]}"))
    import requests.utils

    assert (
        requests.utils.select_proxy("http://h", requests.utils.get_environ_proxies("http://127.0.0.1:1"))
        is None
    )
    monkeypatch.delenv("http_proxy")
    with pytest.raises(ClusterUnreachableError, match="check that the head runs"):
        refuse_silent_address(Way("http://only-the-proxy-knows.example:8265"))
