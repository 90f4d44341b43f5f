"""Ray's token is made once, whoever else makes or reads it at the same time."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from cluster.jobs.network import access
from cluster.jobs.network.access import PATH_VARIABLE, TOKEN_VARIABLE, ensure_token, find_token


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    path = tmp_path / "ray" / "auth_token"
    monkeypatch.setenv(PATH_VARIABLE, str(path))
    return path


@pytest.fixture
def no_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CIFS, and on some file systems in user space."""

    def refuse(source: object, target: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("is_empty_there", [False, True])
@pytest.mark.parametrize("has_hard_links", [False, True])
def test_commands_that_begin_at_once_have_one_token(
    path: Path, request: pytest.FixtureRequest, is_empty_there: bool, has_hard_links: bool
) -> None:
    num_commands = 8
    if not has_hard_links:
        request.getfixturevalue("no_hard_links")
    if is_empty_there:
        path.parent.mkdir()
        path.touch(0o644)
    together = Barrier(num_commands)

    def command(_: int) -> str | None:
        together.wait()
        ensure_token()
        return find_token()

    with ThreadPoolExecutor(num_commands) as pool:
        tokens = set(pool.map(command, range(num_commands)))
    assert len(tokens) == 1
    assert len(path.read_text()) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("has_hard_links", [False, True])
def test_one_made_meanwhile_by_another_command_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, has_hard_links: bool
) -> None:
    if not has_hard_links:
        request.getfixturevalue("no_hard_links")

    def before_the_other() -> str | None:
        monkeypatch.setattr(access, "find_token", find_token)
        path.parent.mkdir()
        path.write_text("of-another")
        return None

    monkeypatch.setattr(access, "find_token", before_the_other)
    access.ensure_token()
    assert find_token() == "of-another"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_without_a_token_is_filled(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(" \n")
    ensure_token()
    assert len(find_token() or "") == 64
    ensure_token()
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_another_command_fills_meanwhile_is_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found it empty; the other one has its lock first."""
    path.parent.mkdir()
    path.touch()
    others: list[str | None] = []
    lock_file = access.lock_file

    def after_the_other(descriptor: int) -> None:
        monkeypatch.setattr(access, "lock_file", lock_file)
        ensure_token()
        others.append(find_token())

    monkeypatch.setattr(access, "lock_file", after_the_other)
    ensure_token()
    assert others == [find_token()]
