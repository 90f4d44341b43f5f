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
from tests.front_door.test_matrix import parsers as every_parser

README = Path(__file__).parents[1] / "README.md"
HEADING = "## Your own teacher and prompts\n"
TEACHER, STUDENT = "--teacher Qwen/Qwen3-4B", "--student Qwen/Qwen3-0.6B"


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

    run(label.replace(TEACHER, "--set teacher.engine=fake"))
    assert json.loads(run(f"{status} --json"))["state"] == "finished"
    assert json.loads(run(f"{inspect} --json"))["num_sequences"] == len(prompts)
    run(verify)
    byte_tokenizer = README.parent / "configs" / "byte-tokenizer"
    small = f"--set student.small.hidden_size=16 --set student.tokenizer='{byte_tokenizer}'"
    assert STUDENT in train
    run(f"{train.replace(STUDENT, small)} --set training.max_steps=1")
    assert (tmp_path / "build" / "student" / "model.safetensors").is_file()
    with subprocess.Popen(
        f"exec {view} --port 0", shell=True, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as page:
        assert page.stdout is not None
        said = page.stdout.readline()
        page.terminate()
    assert re.match(r"serving http://127\.0\.0\.1:\d+/", said)


def test_no_command_of_the_readme_is_in_a_section_without_a_test() -> None:
    sections = re.split(r"^## ", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    with_commands = [
        one.partition("\n")[0] for one in sections if re.search(r"^(penumbra|make) ", one, re.MULTILINE)
    ]
    assert with_commands == [
        "Your own teacher and prompts",  # here
        "Try it without a GPU",  # .ci/run, tests/benchmarks/demo
        "On a cluster that a team shares",  # tests/cluster/test_readme.py
        "Choosing K, and what it costs",  # here
    ]


def test_the_readmes_table_names_commands_and_options_that_exist() -> None:
    table = README.read_text(encoding="utf-8").split("## What else it does\n")[1].split("\n## ")[0]
    named: list[tuple[str, str, list[str]]] = []
    for cell in re.findall(r"^\|.*\| (.*) \|$", table, re.MULTILINE):
        program = ""
        for text in re.findall(r"`([a-z][a-z -]*)`", cell):
            words = text.split()
            if words[0] == "penumbra":
                program = words[1]
            name, *options = words[2:] if words[0] == "penumbra" else words
            named.append((program, name, options))
    assert len(named) == 17
    parsers = {(program, name): parser for program, name, parser in every_parser()}
    for program, name, options in named:
        assert set(options) <= parsers[program, name]._option_string_actions.keys(), (program, name)
