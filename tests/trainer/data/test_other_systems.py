"""Reading and training on a system without POSIX locks and flags, as Windows; writing is refused in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.stores import make_store

ROOT = Path(__file__).parents[3]
WITHOUT_POSIX = """
import asyncio, multiprocessing, ntpath, os, shutil, signal, subprocess, sys, tempfile
import numpy, pyarrow, LIBRARY  # whose builds for Linux use what is taken away below

for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty"):
    sys.modules[name] = None
flags = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY")
calls = ("getuid", "geteuid", "fork", "sched_getaffinity", "setsid", "killpg", "getpgid", "chown", "mkfifo")
for name in (*flags, *calls, "register_at_fork"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGVTALRM", "SIGPIPE", "SIGCHLD", "setitimer", "alarm"):
    delattr(signal, name)
shutil._use_fd_functions = False
open_any = os.open

def open_files_alone(path, *more, **named):
    if not isinstance(path, int) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return open_any(path, *more, **named)

os.open = open_files_alone
"""


def run(program: str, folder: Path, library: str = "zstandard") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_POSIX.replace("LIBRARY", library) + program],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_a_store_is_read_and_trained_from_without_posix(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    program = f"""
from logitstore import LogitStore
from trainer import StreamingLogitDataset
sequences = list(LogitStore.open({str(tmp_path / "store")!r}).iter_sequences())
batch = sum(1 for _ in StreamingLogitDataset([{str(tmp_path / "store")!r}]))
print(len(sequences), batch)
from logitstore.__main__ import main
os.sep, relpath = "\\\\", os.path.relpath  # names of a folder's files come with the system's own
os.path.relpath = lambda *paths: relpath(*paths).replace("/", os.sep)
commands = ["verify", "head", "cat", "view --out page.html", "copy OUT", "publish public", "export table.parquet",
            "export --to arrow tables/", "export table.jsonl", "verify --repair"]
for command in commands:
    name, *options = command.split()
    assert main([name, {str(tmp_path / "store")!r}, *options]) == 0, command
copy = LogitStore.open("OUT")
assert [one.record_id for one in copy] == [one.record_id for one in sequences]
"""
    done = run(program, tmp_path, "torch")
    assert done.returncode == 0, done.stderr[-2000:]
    read, streamed = map(int, done.stdout.split()[:2])
    assert read > 0
    assert streamed > 0


@pytest.mark.slow
def test_writing_without_locks_is_refused_in_words(tmp_path: Path) -> None:
    """A merge left a store that was begun, an import one with all labels and without an index."""
    make_store(tmp_path / "store")
    done = run(
        "from logitstore.__main__ import main\n"
        "print([main(words.split()) for words in ('rebuild-index store', 'merge store --out new', "
        "'compact store', 'export store table.parquet', 'import table.parquet new --from parquet')])\n",
        tmp_path,
    )
    assert done.stdout.splitlines()[-1] == "[3, 3, 3, 0, 3]", done.stderr
    assert done.stderr.count("stores can be read here and not written") == 4
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
