"""From seeds to a labeled store through all steps, with one ledger: `penumbra label recipe`.

The steps go from what costs little to what costs much: expand, dedupe, decontaminate, judge, label; then a
program may check what was answered. Each is done only if the recipe has its section. The ledger holds, for
each step, what it was made from and what came out, so a recipe that is given again goes on where it stopped
and does nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from labeler.config.found import find_settings
from labeler.config.loading import JobConfig, checked_job, identity
from labeler.curation.asking import AskPaths, asking_job
from labeler.curation.check import CheckSettings, check_responses, program_digest
from labeler.curation.check_program import command_parts
from labeler.curation.check_records import read_records
from labeler.curation.expand import expand, sampling_of
from labeler.curation.judge import SAMPLING as JUDGE_SAMPLING
from labeler.curation.judge import judge
from labeler.curation.recipe_ledger import StepRecord, digest_of, read_ledger, write_ledger
from labeler.curation.settings import (
    CheckStepSettings,
    DecontaminateSettings,
    DedupeSettings,
    ExpandSettings,
    JudgeSettings,
    checked,
    refuse_no_tables,
)
from labeler.curation.sifting import Source, decontaminate, dedupe
from labeler.errors import JobFailedError
from logitstore.common.config_file import ConfigError, flatten
from logitstore.common.section import HomePath, Section
from logitstore.store import LogitStore

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


Say = Callable[[str], None]


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
    if settings.records and not _label_document(recipe, Path())["input"].get("id"):
        raise ConfigError(
            f"{where}: check.records = true finds problems by their own ids; set input.id to the field that "
            "holds them, or check.records = false"
        )


def _check_jobs(recipe: Recipe, where: str) -> None:
    """Raise ConfigError for settings that the job of a step will not take."""
    for name in recipe.steps:
        if name in ASKING_STEPS:
            _job_of(recipe, name, where)


def _job_of(recipe: Recipe, name: str, where: str | None = None) -> JobConfig:
    """The job of a step, but for the place of its prompts, which may not be there yet."""
    prompts, settings = Path("prompts.jsonl"), recipe.sections.get(name)
    if isinstance(settings, ExpandSettings):
        return asking_job(recipe.document, AskPaths(prompts), sampling_of(settings), rows=False, where=where)
    if isinstance(settings, JudgeSettings):
        return asking_job(recipe.document, AskPaths(prompts), JUDGE_SAMPLING, rows=True, where=where)
    return checked_job(_label_document(recipe, prompts), where)


def run_recipe(recipe: Recipe, *, quiet: bool = False, say: Say = print) -> Path:
    """Do what is not done yet; the path of the last output.

    Raises:
        ConfigError: the ledger is damaged, or a step left nothing.
        JobFailedError: a job of the teacher did not reach its end; the same recipe goes on.
    """
    folder = Path(recipe.settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    ledger = read_ledger(recipe.ledger)
    source = Source(recipe.settings.seeds, recipe.settings.field, limit=recipe.settings.limit)
    digest, last = f"{source.fingerprint()}:{source.limit}", Path(recipe.settings.seeds)
    for name in recipe.steps:
        out = recipe.output_of(name)
        made_from, record = _made_from(recipe, name, digest), ledger.get(name)
        if record is not None and record.made_from == _made_from(recipe, name, digest, as_before=True):
            if record.made_from != made_from and name == "label":
                say("label: recorded by an earlier version, without [filters]; a change of them is not seen")
            ledger[name] = record = replace(record, made_from=made_from)
            write_ledger(recipe.ledger, ledger)
        if record is not None and record.made_from == made_from and digest_of(out) == record.output_digest:
            say(f"{name}: done before, {_counts(record.report)}")
        else:
            if record is not None and record.made_from != made_from and out.exists():
                raise ConfigError(
                    f"{out} was made from other seeds or settings than [{name}] and the steps before it have "
                    "now, or by an earlier version, whose record of them cannot be compared; choose another "
                    "recipe.out, or remove the files of that step and of those after it, which are made, and "
                    "paid, again then"
                )
            report = _do(recipe, name, source, out, quiet=quiet, say=say)
            record = StepRecord(made_from, out.name, digest_of(out), report)
            ledger[name] = record
            write_ledger(recipe.ledger, ledger)
            say(f"{name}: {_counts(report)}")
        if out.is_file() and not out.stat().st_size:
            raise ConfigError(
                f"[{name}] left no prompt ({_counts(record.report)}); see {AskPaths(out).dropped}, give it "
                f"other settings and remove {out}"
            )
        source, digest, last = Source(str(out)), record.output_digest, out
    return last


def _do(recipe: Recipe, name: str, source: Source, out: Path, *, quiet: bool, say: Say) -> dict[str, Any]:
    settings = recipe.sections.get(name)
    if isinstance(settings, ExpandSettings):
        others = recipe.stores_of_others(name)
        return asdict(expand(recipe.document, source, out, settings, quiet=quiet, also_counted=others))
    if isinstance(settings, JudgeSettings):
        others = recipe.stores_of_others(name)
        return asdict(judge(recipe.document, source, out, settings, quiet=quiet, also_counted=others))
    if isinstance(settings, DedupeSettings):
        report = dedupe(source, out, settings)
    elif isinstance(settings, DecontaminateSettings):
        report = decontaminate(source, out, settings)
    elif isinstance(settings, CheckStepSettings):
        return _check(recipe, out, settings)
    else:
        return _label(recipe, source, quiet=quiet, say=say)
    counts = ("num_read", "num_kept", "num_dropped")
    return {count: asdict(report)[count] for count in counts}


def _label(recipe: Recipe, source: Source, *, quiet: bool, say: Say) -> dict[str, Any]:
    from labeler.driver.run import RunOptions, run

    document = deepcopy(_label_document(recipe, Path(source.uri)))
    for line in find_settings(document):
        say(line)
    options = RunOptions(quiet=quiet, also_counted=tuple(recipe.stores_of_others("label")))
    status, job_status = run(checked_job(document, None), options)
    if status:
        raise JobFailedError(
            f"not everything was labeled (exit status {int(status)}, see above); give the recipe again and "
            "it goes on"
        )
    return {"num_sequences": job_status.sequences}


def _check(recipe: Recipe, out: Path, settings: CheckStepSettings) -> dict[str, Any]:
    store, records = LogitStore.open(str(recipe.output_of("label"))), None
    if settings.records:
        records = read_records(str(recipe.labeled_prompts), None, store)
    asked = CheckSettings(settings.program, settings.best, settings.timeout_sec)
    report = asdict(check_responses(store, out, asked, records))
    counts = ("num_read", "num_kept", "num_dropped", "num_problems", "num_unsolved", "num_restarts")
    return {count: report[count] for count in counts}


def _label_document(recipe: Recipe, prompts: Path) -> dict[str, Any]:
    told = dict(recipe.document)
    ids = {"id": "id"} if "expand" in recipe.sections else {}
    return {
        **told,
        "input": {"kind": "prompt", **ids, **told.get("input", {}), "uri": str(prompts)},
        "labels": {"mode": "generate", **told.get("labels", {})},
        "output": {**told.get("output", {}), "uri": str(recipe.output_of("label"))},
    }


def _made_from(recipe: Recipe, name: str, digest: str, *, as_before: bool = False) -> str:
    """Digest of a step's settings and input; what may change between runs of a job does not count.

    Args:
        as_before: as earlier versions made it, of a job's sections as they are written, without `[filters]`.
    """
    settings: dict[str, Any] = {}
    if name in recipe.sections:
        settings = recipe.sections[name].model_dump(mode="json")
    if isinstance(step := recipe.sections.get(name), CheckStepSettings):
        settings["program"] = [step.program, program_digest(step.program)]
    if name in ASKING_STEPS:
        parts = ("teacher", "labels", "sampling", "input")
        written = {part: recipe.document.get(part, {}) for part in parts}
        settings["job"] = written if as_before else _job_settings(_job_of(recipe, name))
    text = json.dumps([name, settings, digest], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _job_settings(job: JobConfig) -> dict[str, Any]:
    """The settings that what the teacher answers depends on; the input is known by its digest.

    Defaults are left out, so that a setting which a later version adds changes nothing.
    """
    given = flatten(job.model_dump(mode="json", exclude_defaults=True))
    return {key: value for key, value in identity(job).items() if key in given and key != "input.uri"}


def _counts(report: Mapping[str, Any]) -> str:
    """The numbers of a report in words."""
    parts = []
    for name, value in report.items():
        if isinstance(value, Mapping):
            parts += [f"{count:,} {reason}" for reason, count in sorted(value.items())]
        elif isinstance(value, int):
            parts.append(f"{value:,} {name.removeprefix('num_').replace('_', ' ')}")
    return ", ".join(parts)
