"""The README's commands for one's own prompts, typed as they stand but for the teacher, which is the stand-in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
HEADING = "## Your own teacher and prompts\n"
TEACHER = "teacher.model=Qwen/Qwen3-0.6B"


def commands() -> list[str]:
    """The lines of the section's first block, continued ones joined and comments cut off."""
    section = README.read_text(encoding="utf-8").split(HEADING)[1]
    block = section.split("```\n")[1].replace("\\\n", "")
    return [line.split("  #")[0].strip() for line in block.splitlines()]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_prompts_without_ids_are_labeled_by_the_commands_of_the_readme(tmp_path: Path) -> None:
    label, status, inspect, verify, view = commands()
    assert TEACHER in label
    assert re.fullmatch(r"python -m logitstore view \S+", view)
    prompts = ["Why is the sky blue?", "Name three rivers.", "为什么天空是蓝色的?"]
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PATH": path
    }

    def run(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run(label.replace(TEACHER, "teacher.engine=fake"))
    assert json.loads(run(f"{status} --json"))["state"] == "finished"
    assert json.loads(run(f"{inspect} --json"))["num_sequences"] == len(prompts)
    run(verify)
