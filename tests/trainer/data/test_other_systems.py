"""Reading and training on a system without POSIX locks and flags, as Windows; writing is refused in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.stores import make_store

WITHOUT_POSIX = """
import os, sys
sys.modules["fcntl"] = None
for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
    delattr(os, name)
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX + program], capture_output=True, text=True, timeout=120
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
"""
    done = run(program)
    assert done.returncode == 0, done.stderr[-2000:]
    read, streamed = map(int, done.stdout.split())
    assert read > 0
    assert streamed > 0


@pytest.mark.slow
def test_writing_without_locks_is_refused_in_words(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    done = run(
        "from logitstore.__main__ import main\n"
        f"sys.exit(main(['rebuild-index', {str(tmp_path / 'store')!r}]))\n"
    )
    assert done.returncode == 3, done.stderr
    assert "stores can be read here and not written" in done.stderr
    assert "Traceback" not in done.stderr
