"""The configuration of rounds: one TOML file beside those of the labeling job and of the training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from logitstore.common.config_file import ConfigError, apply_override, explain_problem, read_document
from logitstore.common.section import HomePath, Section

OF_ANSWERS = ("teacher.model", "input.prompt_seen", "labels.mode", "output.uri")
OF_SCORES = ("input.", "labels.mode", "labels.positions", "output.uri")
"""Settings and sections that make a round: another model would answer, or other text be scored."""


class StopConfig(Section):
    """When rounds end before `rounds.count`; both by the student's KL on its own text."""

    kl_below: float | None = Field(default=None, gt=0)
    """End when KL(teacher, student) on the student's own text is at most so many nats."""
    gain_below: float | None = Field(default=None, gt=0, lt=1)
    """End when that KL fell by less than this share since the round before. Meant for `rounds.beta` = 0:
    under the other divergences it may rise while the two come closer."""


class RoundsConfig(Section):
    """What a round consists of."""

    folder: HomePath
    """Folder of the ledger, the rounds' answers and stores, and the students; one that all machines of the
    job see under the same path."""
    job: HomePath
    """File of the labeling job that names the teacher, the prompts and how answers are sampled."""
    train: HomePath
    """File of the training run: the student that begins, and the stores of the teacher's own text."""
    count: int = Field(default=2, ge=1)
    """Rounds at most; may be raised later, and the rounds done stay."""
    own_weight: float = Field(default=1.0, gt=0)
    """How often the student's own text occurs in an epoch, beside the stores of the training run."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """The divergence of training in rounds: 0.5 is the Jensen-Shannon divergence, 1 the reverse KL, 0 the
    forward KL, under which a student covers what the teacher does instead of leaving what it does not."""
    answer_set: tuple[str, ...] = ()
    """Settings of the job that are others while the student answers, as "section.key=value"."""
    score_set: tuple[str, ...] = ()
    """Settings of the job that are others while the teacher scores."""

    @field_validator("folder")
    @classmethod
    def _folder_is_one(cls, folder: str) -> str:
        if "://" in folder:
            raise ValueError(
                "the ledger, and the students that engines start from, lie in a folder: give a path, on a "
                "cluster one that all its machines see"
            )
        return folder


class RoundsFile(Section):
    """The whole file."""

    rounds: RoundsConfig
    stop: StopConfig = StopConfig()


class Documents(Section):
    """The two files that the rounds are made from, as they were read."""

    job: dict[str, Any]
    train: dict[str, Any]


def load_rounds(path: str) -> tuple[RoundsFile, Documents]:
    """The rounds of a TOML file and the files it names, which lie beside it unless their path says otherwise.

    Raises ConfigError naming the value, the rule and the remedy.
    """
    try:
        found = RoundsFile.model_validate(read_document(path, what="rounds"))
    except ValidationError as error:
        lines = [explain_problem(problem, RoundsFile, what="rounds") for problem in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(lines)}") from None
    documents = [
        read_document(str(_beside(path, name)), what=what)
        for name, what in ((found.rounds.job, "job"), (found.rounds.train, "run"))
    ]
    for document, name in zip(documents, (found.rounds.job, found.rounds.train), strict=True):
        _check_tables(document, name)
    _check_student(documents[1], found.rounds.train)
    if "data" not in documents[1]:
        raise ConfigError(f"{found.rounds.train}: data.stores is missing: name the teacher's own text")
    _check_overrides("rounds.answer_set", found.rounds.answer_set, OF_ANSWERS)
    _check_overrides("rounds.score_set", found.rounds.score_set, OF_SCORES)
    return found, Documents(job=documents[0], train=documents[1])


def _beside(path: str, name: str) -> Path:
    """`name` where it lies from here, else beside the file that names it."""
    return Path(name) if Path(name).exists() else Path(path).parent / name


def _check_tables(document: dict[str, Any], where: str) -> None:
    """The steps' own documents are made from the sections of this one."""
    for name, value in document.items():
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {name} = {value!r:.80} should be a table; write it as [{name}]")


def _check_student(train: dict[str, Any], where: str) -> None:
    student = train.get("student")
    if not isinstance(student, dict) or not isinstance(student.get("model"), str):
        raise ConfigError(
            f"{where}: student.model is missing: rounds begin with a student that can answer; train one on "
            "the teacher's text first (`penumbra train run`) and name its folder"
        )
    lora = student.get("lora")
    if isinstance(lora, dict) and not lora.get("merge"):
        raise ConfigError(
            f"{where}: student.lora saves adapters alone, which the next round could not start an engine "
            "from; set student.lora.merge = true"
        )


def _check_overrides(name: str, overrides: Sequence[str], ours: Sequence[str]) -> None:
    for override in overrides:
        apply_override({}, override)
        setting = override.partition("=")[0].strip()
        if any(setting == one or (one.endswith(".") and setting.startswith(one)) for one in ours):
            raise ConfigError(
                f"{name} changes {setting}, which the rounds set themselves; leave it out (prompts, teacher "
                "and student are named by rounds.job and rounds.train)"
            )
