"""A recipe's file: its sections, all checked before any step starts, and the jobs of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from labeler.config.loading import JobConfig, checked_job
from labeler.curation.asking import AskPaths, asking_job
from labeler.curation.check_program import command_parts
from labeler.curation.expand import sampling_of
from labeler.curation.judge import SAMPLING as JUDGE_SAMPLING
from labeler.curation.settings import (
    CheckStepSettings,
    DecontaminateSettings,
    DedupeSettings,
    ExpandSettings,
    JudgeSettings,
    checked,
    refuse_no_tables,
)
from logitstore.common.config_file import ConfigError
from logitstore.common.section import HomePath, Section

STEPS = ("expand", "dedupe", "decontaminate", "judge", "label", "check")
ASKING_STEPS = ("expand", "judge", "label")
"""Those that have a job of the teacher, and so a store."""
JOB_SECTIONS = ("teacher", "input", "labels", "sampling", "filters", "output", "workers", "limits", "cost")


class RecipeSettings(Section):
    """`[recipe]`: where the seeds are and where everything goes."""

    seeds: HomePath = Field(min_length=1)
    """Path, glob or URL of the prompts to begin with."""
    field: str | None = None
    """Field of their text; None looks for the usual names."""
    limit: int | None = Field(default=None, ge=1)
    """Take only the first so many seeds."""
    out: HomePath = Field(min_length=1)
    """Folder of the ledger, of every step's files and of the store `labels`."""


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked."""

    settings: RecipeSettings
    sections: Mapping[str, Section]
    """The settings of each step that it has, in the order of `STEPS`; "label" is not among them."""
    document: Mapping[str, Any]
    """The settings of a job, as they stand in the file."""

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done, in order."""
        return tuple(
            name for name in STEPS if name in self.sections or (name == "label" and "labels" in self.document)
        )

    @property
    def ledger(self) -> Path:
        return Path(self.settings.out) / "recipe.json"

    def output_of(self, name: str) -> Path:
        """A file of prompts, or the store of labels or of those that are right."""
        stores = {"label": "labels", "check": "right"}
        return Path(self.settings.out) / stores.get(name, f"{STEPS.index(name) + 1}-{name}.jsonl")

    @property
    def labeled_prompts(self) -> Path | str:
        """What the step `label` reads: the output of the step before it, or the seeds."""
        before = [name for name in self.steps if name not in ("label", "check")]
        return self.output_of(before[-1]) if before else self.settings.seeds

    def stores_of_others(self, name: str) -> list[str]:
        """Stores of the other steps that ask the teacher, as far as they are there: all have one budget."""
        stores = [
            self.output_of(other) if other == "label" else AskPaths(self.output_of(other)).store
            for other in ASKING_STEPS
            if other != name
        ]
        return [str(store) for store in stores if store.is_dir()]


def checked_recipe(document: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of a document; all of its sections are checked before any step starts.

    Raises ConfigError.
    """
    known = ("recipe", *(name for name in STEPS if name != "label"), *JOB_SECTIONS)
    for name in document:
        if name not in known:
            raise ConfigError(f"{where}: [{name}] is no section of a recipe; there are: {', '.join(known)}")
    refuse_no_tables(document, where)
    models = {
        "expand": ExpandSettings,
        "dedupe": DedupeSettings,
        "decontaminate": DecontaminateSettings,
        "judge": JudgeSettings,
        "check": CheckStepSettings,
    }
    sections: dict[str, Section] = {
        name: checked(model, document[name], f"{where}, [{name}]")
        for name, model in models.items()
        if name in document
    }
    recipe = Recipe(
        checked(RecipeSettings, document.get("recipe", {}), f"{where}, [recipe]"),
        sections,
        {name: document[name] for name in JOB_SECTIONS if name in document},
    )
    if not recipe.steps:
        raise ConfigError(
            f"{where} has no step; give one of [expand], [dedupe], [decontaminate], [judge], [labels]"
        )
    _check_check(recipe, where)
    _check_jobs(recipe, where)
    return recipe


def _check_check(recipe: Recipe, where: str) -> None:
    """Raise ConfigError for a [check] that cannot be done once everything is labeled."""
    settings = recipe.sections.get("check")
    if not isinstance(settings, CheckStepSettings):
        return
    command_parts(settings.program)
    if "label" not in recipe.steps:
        raise ConfigError(f"{where}: [check] looks at responses, and no step writes any; give [labels] too")
    if settings.records and not label_document(recipe, "")["input"].get("id"):
        raise ConfigError(
            f"{where}: check.records = true finds problems by their own ids; set input.id to the field that "
            "holds them, or check.records = false"
        )


def _check_jobs(recipe: Recipe, where: str) -> None:
    """Raise ConfigError for settings that the job of a step will not take."""
    for name in recipe.steps:
        if name in ASKING_STEPS:
            job_of(recipe, name, where)


def job_of(recipe: Recipe, name: str, where: str | None = None) -> JobConfig:
    """The job of a step, but for the place of its prompts, which may not be there yet."""
    prompts, settings = Path("prompts.jsonl"), recipe.sections.get(name)
    if isinstance(settings, ExpandSettings):
        return asking_job(recipe.document, AskPaths(prompts), sampling_of(settings), rows=False, where=where)
    if isinstance(settings, JudgeSettings):
        return asking_job(recipe.document, AskPaths(prompts), JUDGE_SAMPLING, rows=True, where=where)
    return checked_job(label_document(recipe, str(prompts)), where)


def label_document(recipe: Recipe, prompts: str) -> dict[str, Any]:
    """Settings of the job that labels the file or URL `prompts`."""
    told = dict(recipe.document)
    given: dict[str, Any] = {"id": "id"} if "expand" in recipe.sections else {}
    if recipe.labeled_prompts == recipe.settings.seeds and recipe.settings.limit is not None:
        given["limit"] = recipe.settings.limit
    return {
        **told,
        "input": {"kind": "prompt", **given, **told.get("input", {}), "uri": prompts},
        "labels": {"mode": "generate", **told.get("labels", {})},
        "output": {**told.get("output", {}), "uri": str(recipe.output_of("label"))},
    }
