"""The README's section for teams, followed word by word."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from logitstore.store import LogitStore

ROOT = Path(__file__).parents[2]


def commands_of(heading: str) -> list[list[str]]:
    """The shell lines of each code block of a section, comments cut off."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    return [[line.split("  #")[0].strip() for line in block.splitlines() if line.strip()] for block in blocks]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_section_for_teams(tmp_path: Path) -> None:
    trial, rendered = commands_of("On a cluster that a team shares")
    assert trial[0] == "python -m cluster up --local 2"
    assert trial[-1] == "python -m cluster down"
    store = ROOT / "build" / "team-trial"
    shutil.rmtree(store, ignore_errors=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RAY_API_SERVER_ADDRESS", None)
    expected = {"python -m cluster status": {0, 4}}  # 4 where the job had been stopped already
    try:
        for command in trial[:-1] + rendered:
            done = subprocess.run(
                command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode in expected.get(command, {0}), f"{command}\n{done.stdout}\n{done.stderr}"
    finally:
        down = subprocess.run(trial[-1], shell=True, cwd=ROOT, env=environment, check=False)
    assert down.returncode == 0
    records = (ROOT / "benchmarks" / "demo_data" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    labeled = [sequence.record_id for sequence in LogitStore.open(str(store)).iter_sequences()]
    assert len(labeled) == len(set(labeled)) == len(records)
