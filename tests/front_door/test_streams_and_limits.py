"""What a locale cannot write, and files that a limit cuts off."""

from __future__ import annotations

import errno
import io
import os
import resource
import sys
from pathlib import Path

import pytest

from logitstore.common.command import Program, run_program
from logitstore.common.exit_status import ExitStatus
from logitstore.errors import UnsupportedInputError
from logitstore.objects.addresses import normalise_uri

WORDS = Program(name="label", description="", extra="label")
TEXT = "café ‮ 😀"


class Stream(io.TextIOWrapper):
    """A pipe or a terminal of a locale."""

    def __init__(self, encoding: str, *, is_terminal: bool) -> None:
        self.written = io.BytesIO()
        self._is_terminal = is_terminal
        super().__init__(self.written, encoding=encoding)

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("encoding", "is_terminal", "expected"),
    [
        ("ascii", False, TEXT.encode()),
        ("latin-1", False, TEXT.encode()),
        ("utf-8", True, TEXT.encode()),
        ("latin-1", True, b"caf\xe9 \\u202e \\U0001f600"),
    ],
)
def test_text_that_the_locale_cannot_write_ends_no_command(
    encoding: str, is_terminal: bool, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was "a defect of penumbra": an id with an accent, where output is Latin-1 or ASCII."""
    stream = Stream(encoding, is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_program(WORDS, lambda: print(TEXT, end="") or ExitStatus.DONE) == 0
    assert stream.written.getvalue() == expected


def test_a_limit_of_file_sizes_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            return (tmp_path / "file").write_bytes(b"x" * 5000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert run_program(WORDS, write) == ExitStatus.FAILED
    assert "larger than its file system, or this process (ulimit -f), allows" in capsys.readouterr().err


def test_a_folder_that_was_removed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def getcwd() -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", getcwd)
    with pytest.raises(UnsupportedInputError, match="present folder was removed, so 'store' is nowhere"):
        normalise_uri("store")
