"""Headers and tokens, which may be secrets: where they are from, what is refused, and that none is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import WrongAccessError
from cluster.jobs.network.access import bearer_headers, find_token
from cluster.jobs.network.address import find_way

SECRET = "hunter2"


def test_a_secret_header_stands_in_a_file(tmp_path: Path) -> None:
    """As curl takes them: HTTP's own lines, or those of --header; no message holds what a line holds."""
    file = tmp_path / "headers"
    file.write_text("Authorization: Bearer a=b:c==\n\nX-Team=nlp: one\n")
    assert find_way("head", [f"@{file}", "X-Other=2"], environ={}).headers == {
        "Authorization": "Bearer a=b:c==",
        "X-Team": "nlp: one",
        "X-Other": "2",
    }
    file.write_text("X-A=1\nhunter2-alone\n")
    with pytest.raises(WrongAccessError, match="line 2 must look like NAME=VALUE") as refused:
        find_way("head", [f"@{file}"], environ={})
    assert "hunter2" not in str(refused.value)
    with pytest.raises(WrongAccessError, match="cannot be read"):
        find_way("head", ["@/nowhere"], environ={})


@pytest.mark.parametrize(
    ("given", "variable"),
    [
        (f"X-A={SECRET}\nX-B=1", ""),
        (f"X-A={SECRET}\u20ac", ""),
        (f"X A={SECRET}", ""),
        (f"H\u00e9ader={SECRET}", ""),
        (f"X:={SECRET}", ""),
        ("X-B=1", f'{{"X-A": "{SECRET}\\n"}}'),
        ("X-B=1", f'{{"X-A": "{SECRET}\\u0000"}}'),
        ("X-B=1", f'{{"": "{SECRET}"}}'),
    ],
)
def test_what_no_header_can_carry_is_refused_without_being_shown(given: str, variable: str) -> None:
    """A library would refuse it too, in a message with the whole value."""
    with pytest.raises(WrongAccessError, match=r"no name of a header|no header can carry") as refused:
        find_way("head", [given], environ={"RAY_JOB_HEADERS": variable})
    assert SECRET not in str(refused.value)
    assert find_way("head", ["X-A=\u00e4 b=c"], environ={}).headers == {"X-A": "\u00e4 b=c"}


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "ray" / "auth_token"
    file.parent.mkdir()
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    return file


@pytest.mark.parametrize(
    "content",
    [
        f"{SECRET}\nother\n".encode(),
        SECRET.encode("utf-16"),
        f"{SECRET} x".encode(),
        f"\ufeff{SECRET}".encode(),
    ],
)
def test_a_file_that_holds_no_token_is_named_without_what_it_holds(token_file: Path, content: bytes) -> None:
    token_file.write_bytes(content)
    with pytest.raises(WrongAccessError, match="is no token, which is one word") as refused:
        find_token()
    assert str(token_file) in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_token_may_end_with_a_newline_and_spaces_alone_are_none(
    token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_file.write_text("abc\r\n")
    assert find_token() == "abc"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "  ")
    assert find_token() == "abc"
    monkeypatch.setenv("RAY_AUTH_TOKEN", f"{SECRET}\nX: 1")
    with pytest.raises(WrongAccessError, match="RAY_AUTH_TOKEN holds is no token"):
        find_token()


def test_a_token_beside_a_proxys_password_has_the_header_that_ray_keeps_for_it() -> None:
    assert bearer_headers(None, {"authorization": "Basic x"}) == {}
    assert bearer_headers("t", {"X-Team": "nlp"}) == {"Authorization": "Bearer t"}
    assert bearer_headers("t", {"authorization": "Basic x"}) == {"X-Ray-Authorization": "Bearer t"}
