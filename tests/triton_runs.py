"""Triton kernels, under the interpreter and compiled for a GPU, each in a process of its own.

Triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def assert_cases_pass(cases: Path) -> None:
    """The tests of a file that is not collected by itself, under the interpreter."""
    output = _run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)], TRITON_INTERPRET="1")
    assert " passed" in output
    assert "skipped" not in output


def assert_compiles(program: str, cache: Path) -> None:
    """A program that compiles kernels and says so at its end; needs no GPU."""
    output = _run(["-c", program], TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache))
    assert output.strip().endswith("compiled")


def _run(arguments: list[str], **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
