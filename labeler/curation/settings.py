"""The settings of each step that makes or chooses prompts; a recipe has a section for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from logitstore.common.config_file import ConfigError, explain_problem
from logitstore.common.section import Section

DEFAULT_REPHRASING = (
    "Write another request that asks for the same kind of help as the one below, in other words and about "
    "other particulars. Answer with the request alone.\n\n{prompt}"
)
DEFAULT_RUBRIC = (
    "How good is the request below for teaching an assistant? Give one digit: 1 (unclear or useless), "
    "2 (poor), 3 (usable), 4 (good), 5 (clear, specific and instructive). Answer with the digit "
    "alone.\n\n{prompt}"
)


class DedupeSettings(Section):
    """Leaving out prompts that nearly repeat an earlier one."""

    by: tuple[Literal["minhash", "cosine"], ...] = ("minhash", "cosine")
    """"minhash" compares letters and takes the same time for each record; "cosine" compares meaning, with
    all that were kept, so its time grows with the square of their number."""
    jaccard: float = Field(default=0.8, gt=0, le=1)
    """Letters: share of equal runs of 5 characters, from which on two prompts are near."""
    cosine: float = Field(default=0.85, gt=0, le=1)
    """Meaning: cosine of the embeddings, from which on two prompts are near. What a cosine means differs by
    embedding: `penumbra bench curation` shows what is found and what is dropped wrongly by threshold."""


class DecontaminateSettings(Section):
    """Leaving out prompts that an evaluation set contains."""

    against: tuple[str, ...] = Field(min_length=1)
    """Evaluation sets: paths, globs or URLs."""
    against_field: str | None = None
    """Field of their text; None looks for the usual names."""
    by: tuple[Literal["ngram", "cosine"], ...] = ("ngram", "cosine")
    """"ngram" finds words in a row, "cosine" meaning."""
    words: int = Field(default=13, ge=2)
    """Words in a row that two texts may not share; a shorter evaluation text may not be met as a whole."""
    cosine: float = Field(default=0.85, gt=0, le=1)
    """Meaning: cosine of the embeddings, from which on two texts are near; see `[dedupe]`."""


class ExpandSettings(Section):
    """Further prompts after the given ones, written by the teacher."""

    template: str = DEFAULT_REPHRASING
    """What the teacher is asked; {prompt} stands for the given prompt."""
    n: int = Field(default=4, ge=1)
    """New prompts asked for after each."""
    temperature: float = Field(default=0.9, ge=0)
    """Sampling temperature of the teacher."""
    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of a new prompt; a longer one is dropped, since its end is missing."""
    seed: int = Field(default=0, ge=0)
    """The same seed writes the same prompts."""
    with_seeds: bool = True
    """Put the given prompts before the new ones."""

    @field_validator("template")
    @classmethod
    def _has_place(cls, template: str) -> str:
        return _with_place(template)


class JudgeSettings(Section):
    """A grade from 1 to 5 for each prompt, from the teacher's probabilities of the five digits."""

    rubric: str = DEFAULT_RUBRIC
    """What the teacher is asked; {prompt} stands for the prompt and {response} for its answer. The first
    token of its reply must be able to be a digit."""
    response_field: str = "response"
    """The field that {response} stands for."""
    threshold: float = Field(default=3.0, ge=1, le=5)
    """Least expected grade of a prompt that is kept."""
    min_mass: float = Field(default=0.05, ge=0, le=1)
    """Least probability of the five digits together; a prompt with less has no grade and is dropped."""

    @field_validator("rubric")
    @classmethod
    def _has_place(cls, rubric: str) -> str:
        return _with_place(rubric)


class CheckStepSettings(Section):
    """Keeping the responses that a program of yours finds right: the last step of a recipe."""

    program: str = Field(min_length=1)
    """The program and its arguments, as in a shell but without one; see `penumbra label check --help`."""
    best: int = Field(default=1, ge=1)
    """Responses kept of each problem: those with the highest score, then the shortest."""
    timeout_sec: float = Field(default=30.0, gt=0)
    """Longest wait for a verdict; a response without one is dropped."""
    records: bool = True
    """Show the program the record of each problem that was labeled; this needs records with ids of their own
    (`input.id`), which `[expand]` gives to all."""


def _with_place(template: str) -> str:
    if "{prompt}" not in template:
        raise ValueError("the text has no {prompt}, where the prompt belongs; put it in")
    return template


SomeSettings = TypeVar("SomeSettings", bound=Section)


def checked(model: type[SomeSettings], values: Mapping[str, Any], where: str) -> SomeSettings:
    """The settings, or one line on what is wrong with them.

    Raises ConfigError.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [explain_problem(problem, model, what=where) for problem in error.errors()]
        raise ConfigError(f"{where}: {'; '.join(lines)}") from None


def refuse_no_tables(document: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a section that is no table of settings."""
    for name, values in document.items():
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{where}: {name} = {values!r:.40} is no section; write [{name}] and its settings"
            )
