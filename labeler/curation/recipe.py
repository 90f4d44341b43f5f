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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from labeler.config.found import find_input, find_settings
from labeler.config.loading import JobConfig, checked_job, identity
from labeler.curation.asking import AskPaths, unfinished
from labeler.curation.check import CheckSettings, check_responses, program_digest
from labeler.curation.check_records import read_records
from labeler.curation.expand import expand
from labeler.curation.judge import judge
from labeler.curation.recipe_file import ASKING_STEPS, Recipe, job_of, label_document
from labeler.curation.recipe_ledger import StepRecord, digest_of, read_ledger, write_ledger
from labeler.curation.settings import (
    CheckStepSettings,
    DecontaminateSettings,
    DedupeSettings,
    ExpandSettings,
    JudgeSettings,
)
from labeler.curation.sifting import Source, decontaminate, dedupe
from logitstore.common.config_file import ConfigError, flatten
from logitstore.contamination.prompt_texts import PromptText
from logitstore.store import LogitStore

Say = Callable[[str], None]


def run_recipe(recipe: Recipe, *, quiet: bool = False, say: Say = print) -> Path:
    """Do what is not done yet; the path of the last output.

    Raises:
        ConfigError: the ledger is damaged, or a step left nothing.
        OwnJobError: a job of the teacher did not reach its end.
    """
    folder = Path(recipe.settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = _with_kind_of_seeds(recipe, say)
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


def _with_kind_of_seeds(recipe: Recipe, say: Say) -> Recipe:
    """The recipe with the kind and the fields of its seeds, where they reach the step `label` as they are and
    neither the recipe nor a field `prompt` tells them: the steps before it look for the usual names too.

    Raises ConfigError for seeds that cannot be labeled, before the steps whose work would be for nothing.
    """
    told, field = recipe.document.get("input", {}), recipe.settings.field
    fields = {**({"prompt": field} if field else {}), **told.get("fields", {})}
    made = "label" not in recipe.steps or "expand" in recipe.sections
    if made or "kind" in told or "prompt" in told.get("fields", {}) or field == "prompt":
        return recipe
    first = next(
        (one for one in Source(recipe.settings.seeds).prompts() if isinstance(one, PromptText)), None
    )
    if first is None or (field is None and "prompt" in first.record):
        return recipe
    found = {"id": None, **told, "kind": "auto", "fields": fields}
    document = deepcopy(
        label_document(replace(recipe, document={**recipe.document, "input": found}), recipe.settings.seeds)
    )
    for line in find_input(document):
        say(f"label: {line}")
    checked_job(document, None)
    found |= {name: document["input"][name] for name in ("kind", "fields") if name in document["input"]}
    return replace(recipe, document={**recipe.document, "input": found})


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

    document = deepcopy(label_document(recipe, source.uri))
    for line in find_settings(document):
        say(line)
    options = RunOptions(quiet=quiet, also_counted=tuple(recipe.stores_of_others("label")))
    status, job_status = run(checked_job(document, None), options)
    if status:
        raise unfinished("not everything was labeled", status, "the recipe")
    return {"num_sequences": job_status.sequences}


def _check(recipe: Recipe, out: Path, settings: CheckStepSettings) -> dict[str, Any]:
    store, records = LogitStore.open(str(recipe.output_of("label"))), None
    if settings.records:
        records = read_records(str(recipe.labeled_prompts), None, store)
    asked = CheckSettings(settings.program, settings.best, settings.timeout_sec)
    report = asdict(check_responses(store, out, asked, records))
    counts = ("num_read", "num_kept", "num_dropped", "num_problems", "num_unsolved", "num_restarts")
    return {count: report[count] for count in counts}


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
        settings["job"] = written if as_before else _job_settings(job_of(recipe, name))
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
