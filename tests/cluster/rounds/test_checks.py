"""Rounds that could not end are refused before their first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import trainer.__main__
from cluster.rounds.config import load_rounds
from cluster.rounds.ledger import read_ledger
from cluster.rounds.running import run_rounds
from cluster.rounds.steps import StepFailedError
from logitstore.common.config_file import ConfigError
from tests.cluster.rounds.rounds_here import rounds_file

JOB = """
[teacher]
engine = "fake"
[input]
uri = "prompts.jsonl"
kind = "prompt"
[output]
uri = "store"
"""
TRAIN = """
[student]
model = "student"
[data]
stores = ["store"]
[training]
max_steps = 4
[output]
folder = "out"
"""


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "train.toml").write_text(TRAIN)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('answer_set = ["teacher.model=other"]', r"answer_set changes teacher\.model, which the rounds set"),
        ('answer_set = ["output.uri=here"]', r"output\.uri, which the rounds set"),
        ('score_set = ["input.limit=3"]', r"score_set changes input\.limit, which the rounds set"),
        ('score_set = ["labels.mode=generate"]', "which the rounds set themselves"),
    ],
)
def test_what_makes_a_round_is_not_changed(line: str, says: str, begun: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load_rounds(rounds_file(begun, begun, line))


def test_rounds_lie_in_a_folder(begun: Path) -> None:
    path = Path(rounds_file(begun, begun))
    path.write_text(path.read_text().replace(f'"{begun}/rounds"', '"s3://bucket/rounds"'))
    with pytest.raises(ConfigError, match=r"rounds\.folder = 's3://bucket/rounds': .*lie in a folder"):
        load_rounds(str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "added", "says"),
    [
        ("job", {"labels": {"top_k": "many"}}, r"as the teacher is to score it: labels\.top_k"),
        ("job", {"sampling": {"maxtokens": 3}}, r"as the student is to answer it: sampling\.maxtokens"),
        ("job", {"teacher": {"engine": "openai"}}, "rounds start the student, which no server has"),
        ("train", {"training": {"max_step": 3}}, "max_step"),
    ],
)
def test_wrong_settings_are_known_before_anything_runs(
    place: str, added: dict[str, Any], says: str, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the training were met hours later, when the round's answers were written and scored."""
    file, documents = load_rounds(rounds_file(begun, begun))
    changed = documents.model_copy(update={place: {**getattr(documents, place), **added}})
    told: list[Sequence[str]] = []

    def command(arguments: Sequence[str]) -> str:
        told.append(arguments)
        if trainer.__main__.main(list(arguments[1:])) != 0:
            raise StepFailedError(capsys.readouterr().err)
        return ""

    with pytest.raises((ConfigError, StepFailedError), match=says):
        run_rounds(file, changed, command=command)
    assert all("--dry-run" in arguments for arguments in told)
    assert read_ledger(begun / "rounds") is None, "the settings may be corrected"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("job.toml", JOB.replace("[teacher]\nengine", "teacher = 3\n[x]\nengine"), "teacher = 3 should be a"),
        ("job.toml", f"{JOB}[labels]\ntopk = 8", "labels.topk is not a setting; did you mean labels.top_k"),
        ("train.toml", TRAIN.replace("[data]\nstores", "loss = 1\n[x]\nstores"), "data.stores is missing"),
        ("train.toml", f"loss = []\n{TRAIN}", r"loss = \[\] should be a table; write it as \[loss\]"),
    ],
)
def test_files_that_no_step_could_be_made_from_are_refused(
    file: str, text: str, says: str, begun: Path
) -> None:
    """Other kinds of sections ended as defects, and a misspelt label setting was passed over."""
    (begun / file).write_text(text)
    with pytest.raises(ConfigError, match=says):
        run_rounds(*load_rounds(rounds_file(begun, begun)), command=lambda _: "")
    assert read_ledger(begun) is None
