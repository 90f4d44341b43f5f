"""A store on a file system that is mounted read-only: reading goes on, writing is told in one line."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.logitstore.index.test_absence import make_store

READING = ("inspect", "verify", "cat", "head")
WRITING = (["compact"], ["rebuild-index"], ["uncommit", "--bad"], ["verify", "--repair"])


def in_namespace(mount: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """The command in a mount namespace of its own, after `mount`."""
    script = f"{mount} && exec {shlex.join(command)}"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The commands that mount a store read-only, and the store."""
    folder = tmp_path_factory.mktemp("mounted")
    make_store(folder / "store", 6, 4)
    quoted = shlex.quote(str(folder))
    mount = f"mount --bind {quoted} {quoted} && mount -o remount,bind,ro {quoted}"
    tried = in_namespace(mount, ["touch", str(folder / "x")])
    if "Read-only file system" not in tried.stderr:
        pytest.skip(f"needs the right to mount: {tried.stderr.strip()}")
    return mount, folder / "store"


@pytest.mark.slow
def test_reading_and_writing(read_only: tuple[str, Path]) -> None:
    mount, store = read_only
    wanted = [[name] for name in READING] + list(WRITING)
    done = in_namespace(mount, [sys.executable, "-c", _EACH, str(store), repr(wanted)])
    assert "Traceback" not in done.stderr, done.stderr
    said = done.stderr.split("\x1e")
    for command, text in zip(wanted, said, strict=False):
        status, _, words = text.strip().partition("\n")
        if command[0] in READING and len(command) == 1:
            assert status == "0", (command, words)
        elif words:
            assert status in ("1", "2", "3"), (command, words)
            assert len(words.splitlines()) == 1, (command, words)
            assert "ead-only" in words, (command, words)
    assert len(said) == len(wanted) + 1


_EACH = """
import ast, contextlib, io, sys
from logitstore.__main__ import main
for name, *more in ast.literal_eval(sys.argv[2]):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = main([name, sys.argv[1], *more])
    sys.stderr.write(f"{status}\\n{err.getvalue()}\\x1e")
"""


@pytest.mark.slow
def test_a_job_on_a_store_that_is_read_only(read_only: tuple[str, Path], tmp_path: Path) -> None:
    mount, store = read_only
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n')
    settings = ["teacher.engine=fake", "input.kind=text", f"input.uri='{tmp_path}/in.jsonl'"]
    settings.append(f"output.uri='{store.parent}/another'")
    options = [part for setting in settings for part in ("--set", setting)]
    done = in_namespace(mount, [sys.executable, "-m", "labeler", "run", *options])
    assert done.returncode in (1, 2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert "is not writable; choose another place" in lines[0]
