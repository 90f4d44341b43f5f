"""A folder with a user's own `trainer.py`, `labeler.py` and `cluster/`, in which our commands still work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.labeler.jobs import write_records

ROOT = Path(__file__).parents[2]
NAMES = ("trainer.py", "labeler.py", "logitstore.py", "benchmarks.py", "cluster/__main__.py")
PENUMBRA = (sys.executable, "-P", "-m", "logitstore.common.penumbra")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('the wrong module')\n")
    write_records(tmp_path / "in.jsonl", 12)
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*PENUMBRA, *arguments], cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_our_own_subprocesses_do_not_look_into_the_current_folder() -> None:
    """Every `python -m` of ours that the product starts has -P; Ray's own command is Ray's."""
    without = []
    for package in ("labeler", "trainer", "cluster", "benchmarks", "logitstore"):
        for path in (ROOT / package).rglob("*.py"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if "sys.executable" in line and '"-m"' in line and "ray.scripts" not in line:
                    without += [] if '"-P", ' in line else [f"{path}:{number}"]
    assert without == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_is_labeled_by_our_labeler(folder: Path) -> None:
    """Ray puts the current folder first on its workers' path; ours must still be what they import."""
    overrides = (
        "teacher.engine=fake", "input.uri=in.jsonl", "input.kind=prompt_response", "input.id=uid",
        "labels.mode=score", "output.uri=store", "workers.restarts=0",
    )  # fmt: skip
    sets = [part for override in overrides for part in ("--set", override)]
    run(folder, "label", "run", *sets)
    assert json.loads(run(folder, "label", "status", "store", "--json"))["state"] == "finished"
    run(folder, "store", "verify", "store", "--against", "in.jsonl")
