"""The README's commands for one's own prompts are accepted; the first work with the stand-in as the teacher."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import build_parser
from labeler.config.loading import load_job
from trainer.__main__ import build_parser as train_parser

README = Path(__file__).parents[1] / "README.md"
HEADING = "## Your own teacher and prompts\n"
TEACHER = "--teacher Qwen/Qwen3-4B"


def typed(text: str) -> list[str]:
    """Lines of the first two blocks of shell, continued ones joined and comments cut off."""
    blocks = "".join(text.split("```\n")[1:4:2]).replace("\\\n", "")
    return [line.split("  #")[0].strip() for line in blocks.splitlines()]


@pytest.mark.parametrize("heading", ["Your own teacher and prompts", "Choosing K, and what it costs"])
def test_every_job_and_measurement_of_the_readme_is_accepted(heading: str) -> None:
    section = README.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^penumbra (label run|bench) (.*)$", section.replace("\\\n", ""), re.MULTILINE)
    assert len(lines) >= 2
    for module, rest in lines:
        words = shlex.split(rest, comments=True)
        if module == "bench":
            assert build_parser(words).parse_args(words).run
            continue
        if "--input" in words:
            continue  # run below
        overrides = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
        load_job(words[0] if words[0].endswith(".toml") else None, overrides, {})


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_prompts_without_ids_are_labeled_by_the_commands_of_the_readme(tmp_path: Path) -> None:
    label, train, status, inspect, verify, view = typed(README.read_text(encoding="utf-8").split(HEADING)[1])
    assert TEACHER in label
    assert re.fullmatch(r"penumbra store view \S+", view)
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

    student = shlex.split(train)[3:]
    assert train_parser().parse_args(["run", *student]).labels == "build/labels"
    run(label.replace(TEACHER, "--set teacher.engine=fake"))
    assert json.loads(run(f"{status} --json"))["state"] == "finished"
    assert json.loads(run(f"{inspect} --json"))["num_sequences"] == len(prompts)
    run(verify)
