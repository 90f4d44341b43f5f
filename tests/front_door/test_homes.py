"""`~/x` is a place in a home, in every setting and option that is a path."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import labeler.curation.recipe_file  # noqa: F401
import trainer.run.config  # noqa: F401
from cluster.arguments import build_parser
from cluster.describe.render import render
from cluster.describe.shell_words import path_word
from cluster.describe.slurm.script import script
from cluster.jobs.submission import SubmitOptions, prepare
from labeler.config.loading import load_job
from labeler.curation.check_program import command_parts
from logitstore.common.command import Program
from logitstore.common.section import Section
from logitstore.objects.addresses import normalise_uri
from tests.cluster.describe.descriptions import a_job, one_kind

TAKEN_LATER = {
    "OnPremiseConfig.ssh_private_key": "by ssh, on the machine that runs `ray up`",
    "DockerConfig.env_file": "by the shell of the machine that runs the container",
    "TextSource.uri": "when its files are listed",
    "StoreSource.uri": "when the store is opened",
    "DecontaminateSettings.against": "when its files are listed",
    "CacheConfig.host_path": "refused: absolute, as it is a folder of other machines",
    "CacheConfig.bucket": "refused: a URL",
    "SlurmConfig.scratch": "refused: absolute, as it is a folder of other machines",
    "SlurmConfig.mounts": "refused: absolute, as they are folders of other machines",
    "TrainingConfig.project": "no path",
}
"""Paths that are not expanded with their settings, and by whom."""


def sections(kind: type[Section] = Section) -> Iterator[type[Section]]:
    for below in kind.__subclasses__():
        yield below
        yield from sections(below)


def test_every_setting_that_is_a_path_takes_a_home() -> None:
    found = {
        f"{section.__name__}.{name}"
        for section in sections()
        for name, field in section.model_fields.items()
        if "str" in (text := f"{field.annotation}{field.metadata}")
        and "expanduser" not in text
        and re.search(r"\b(folder|file|path)s?\b", field.description or "", re.IGNORECASE)
    }
    assert found == set(TAKEN_LATER)


def test_an_option_written_with_an_equals_sign_takes_a_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    parser: argparse.ArgumentParser = build_parser(Program("cluster", "", ""))
    args = parser.parse_args(
        ["submit", "job.toml", "--runtime-env=~/env.yaml", "--verify=~/ca.pem", "--set=output.uri=~/x"]
    )
    assert (args.runtime_env, args.verify) == (f"{tmp_path}/env.yaml", f"{tmp_path}/ca.pem")
    job = load_job(None, ["teacher.engine=fake", "input.uri=a", "input.kind=text", *args.set], {})
    assert job.output.uri == f"{tmp_path}/x" == normalise_uri("~/x")
    assert parser.parse_args(["submit", "a~/b", "--env", "X=~/y"]).env == ["X=~/y"], "no path of this machine"
    assert command_parts("~/bin/check --table '~/t 1'") == [
        f"{tmp_path}/bin/check",
        "--table",
        f"{tmp_path}/t 1",
    ]


@pytest.mark.parametrize("path", ["~/keys.env", "~/a b/$(id)", "/etc/a b", "relative"])
def test_a_path_of_another_machine_is_one_word_of_its_shell(path: str, tmp_path: Path) -> None:
    line = f"printf '%s|' --env-file {path_word(path)}"
    done = subprocess.run(
        ["bash", "-c", line], env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    there = path.replace("~", str(tmp_path), 1) if path.startswith("~/") else path
    assert done.stdout == f"--env-file|{there}|"


def test_what_is_rendered_and_sent_leaves_a_home_to_the_shell_there(tmp_path: Path) -> None:
    cluster = one_kind(docker={"env_file": "~/keys.env"}, python="~/venv/bin/python")
    assert "--env-file ~/keys.env" in render(cluster, "ray-on-premise", None, job_file="job.toml")
    batch = script(cluster, "job.toml", a_job())
    assert "~/venv/bin/python -P -m ray" in batch
    assert "'~/" not in batch
    job = a_job()
    sent = prepare(job, SubmitOptions("same", "~/venv/bin/python"), tmp_path, owner="me@here")
    assert sent.entrypoint.startswith("~/venv/bin/python -m labeler run")
