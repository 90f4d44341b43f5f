"""The configuration of a labeling job: one TOML file, checked before anything starts.

Imports neither ray, vllm nor torch, so that `cluster` can check a job where none of them is installed.
The models are in the modules `*settings.py`; `load_job` reads a file and `--set` overrides, and `resolved` is
what a store keeps in `job.json`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from labeler.config.input_settings import InputConfig
from labeler.config.label_settings import MOVED_TO_SAMPLING, FiltersConfig, LabelsConfig, SamplingConfig
from labeler.config.run_settings import CostConfig, LimitsConfig, OutputConfig, WorkersConfig
from labeler.config.settings import JobConfig
from labeler.config.teacher_settings import FakeTeacherConfig, TeacherConfig
from logitstore.common.config_file import (
    ConfigError,
    apply_options,
    apply_override,
    explain_problem,
    flatten,
    read_document,
)
from logitstore.common.secrets import BLANKED, blanked_places, redact_uri, redacted
from logitstore.objects.addresses import path_of_file_url

__all__ = [
    "CostConfig",
    "FakeTeacherConfig",
    "FiltersConfig",
    "InputConfig",
    "JobConfig",
    "LabelsConfig",
    "LimitsConfig",
    "OutputConfig",
    "SamplingConfig",
    "TeacherConfig",
    "WorkersConfig",
    "checked_job",
    "describe_difference",
    "identity",
    "job_document",
    "load_job",
    "resolved",
]


def load_job(
    path: str | None, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> JobConfig:
    """The job of a TOML (or resolved .json) file with `section.key=value` overrides, checked.

    Raises ConfigError naming the value, the rule and the remedy. `environ` gives RAY_ADDRESS.
    """
    return checked_job(job_document(path, overrides, environ), path)


def job_document(
    path: str | None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    *,
    options: Mapping[str, str | None] = MappingProxyType({}),
) -> dict[str, Any]:
    """What a job is told, not yet checked: the file, then `options` by dotted name, then the overrides."""
    document = read_document(path, what="job") if path is not None else {}
    if path is not None and path.endswith(".json"):
        _move_to_sampling(document)
    apply_options(document, options)
    for override in overrides:
        apply_override(document, override)
    address = environ.get("RAY_ADDRESS")
    workers = document.setdefault("workers", {})
    if address and isinstance(workers, dict) and not workers.get("address"):
        workers["address"] = address
    return document


def checked_job(document: Mapping[str, Any], path: str | None) -> JobConfig:
    """The job of a document, which came from the file `path` or from the command line alone."""
    where = path if path is not None else "--set"
    _refuse_blanks(document, where)
    try:
        return JobConfig.model_validate(document)
    except ValidationError as error:
        lines = [explain_problem(problem, JobConfig, what="job") for problem in error.errors()]
        raise ConfigError(f"{where}: {'; '.join(lines)}") from None


def _move_to_sampling(document: dict[str, Any]) -> None:
    """Settings of an earlier version's job.json, which nobody wrote by hand, at their place of today."""
    labels, sampling = document.get("labels"), document.setdefault("sampling", {})
    if isinstance(labels, dict) and isinstance(sampling, dict):
        for name in MOVED_TO_SAMPLING:
            if name in labels:
                sampling.setdefault(name, labels.pop(name))


def _refuse_blanks(document: Mapping[str, Any], where: str) -> None:
    """A job.json stands without its secrets: they must be given again, not tried as "***"."""
    place = next(blanked_places(document), None)
    if place is not None:
        raise ConfigError(
            f"{where}: {place} holds {BLANKED!r}, which stands where a secret was left out; give the secret "
            f"in the environment and remove the setting, or give --set {place}=... again"
        )


def resolved(job: JobConfig) -> dict[str, Any]:
    """Every setting of the job as JSON values, secrets blanked: what `job.json` and the manifest keep."""
    return redacted(job.model_dump(mode="json"))


_CHANGEABLE = (
    "input.storage_options",
    "teacher.api.",
    "teacher.fake.",
    "teacher.head_dtype",
    "teacher.pipeline_parallel_size",
    "teacher.tensor_parallel_size",
    "teacher.trust_remote_code",
    "filters.repeated_tokens",
)
"""Settings that may change between runs of a job: how it is computed and allowed, not what is labeled.

What `teacher.head_dtype` came to is in the store's manifest, which refuses another."""
_OF_RESPONSES = ("sampling.", "filters.")
_OF_GIVEN_RESPONSES = ("sampling.stop", "sampling.stop_token_ids", "filters.duplicate_prompts")
"""What counts of `_OF_RESPONSES` where the teacher writes none: the ends of a response, and equal records."""


def identity(job: JobConfig) -> dict[str, Any]:
    """The settings that a store's labels depend on, by dotted name; others may change between runs.

    Places count by what they are, not by how they are written: a model's folder by its name (the store's
    manifest has its fingerprint), an input by its absolute path or `input.known_as`, a store of given ids by
    its digest, which the plan has. A teacher on more GPUs is the same.
    """
    flat = flatten(
        {name: resolved(job)[name] for name in ("teacher", "labels", "sampling", "input", "filters")}
    )
    if os.path.isdir(job.teacher.model):
        flat["teacher.model"] = os.path.basename(os.path.abspath(job.teacher.model))
    flat["input.uri"] = input_place(flat["input.uri"], flat.pop("input.known_as"))
    del flat["labels.given"]  # The plan has the digest of what lies there.
    return {name: value for name, value in flat.items() if _counts(name, job.labels.mode)}


def _counts(name: str, mode: Any) -> bool:
    """Whether labels of that mode depend on the setting."""
    is_of_responses = name.startswith(_OF_RESPONSES) and name not in _OF_GIVEN_RESPONSES
    return not name.startswith(_CHANGEABLE) and not (mode == "score" and is_of_responses)


def settings_without_effect(job: JobConfig) -> str:
    """A sentence on settings that are not as they come and change nothing in this job; "" without any."""
    if job.labels.mode != "score":
        return ""
    of_responses = flatten({name: resolved(job)[name] for name in ("sampling", "filters")})
    names = [
        name
        for name, value in of_responses.items()
        if name not in _OF_GIVEN_RESPONSES and value != _default_of(name)
    ]
    if not names:
        return ""
    return (
        f'without effect: {", ".join(names)}; labels.mode = "score" labels the responses that are there, '
        "all of them and as they are"
    )


def input_place(uri: str, known_as: str = "") -> str:
    """The place by which a store knows its input, of these two settings."""
    if known_as:
        return redact_uri(known_as)
    return redact_uri(uri) if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def is_local_path(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def with_absolute_paths(job: JobConfig) -> JobConfig:
    """The same job whatever folder it runs in."""
    teacher = job.teacher
    changed: dict[str, Any] = {}
    if os.path.isdir(teacher.model):
        changed["teacher"] = teacher.model_copy(update={"model": os.path.abspath(teacher.model)})
    if teacher.fake.slow_while:
        held_by = os.path.abspath(teacher.fake.slow_while)
        changed["teacher"] = changed.get("teacher", teacher).model_copy(
            update={"fake": teacher.fake.model_copy(update={"slow_while": held_by})}
        )
    for name, place in (("input", job.input), ("output", job.output)):
        if is_local_path(place.uri):
            path = os.path.abspath(os.path.expanduser(path_of_file_url(place.uri)))
            changed[name] = place.model_copy(update={"uri": path})
    if job.labels.given and is_local_path(job.labels.given):
        given = os.path.abspath(os.path.expanduser(path_of_file_url(job.labels.given)))
        changed["labels"] = job.labels.model_copy(update={"given": given})
    if isinstance(job.input.chat_template, str):
        template = os.path.abspath(job.input.chat_template)
        changed["input"] = changed.get("input", job.input).model_copy(update={"chat_template": template})
    return job.model_copy(update=changed)


def _only_adds_records(name: str, stored: Any, now: Any) -> bool:
    """Whether such a change only adds records: lists that were refused, or those behind a limit.

    Earlier versions took the first text of a prompt where `input.list_of_texts` says "refuse", and such a job
    goes on with "first".
    """
    if name == "input.limit":
        return stored is not None and (now is None or now > stored)
    return (name, stored, now) == ("input.list_of_texts", "refuse", "first")


def describe_difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per setting in which two `identity` records differ.

    `stored` may be an earlier version's: a setting that moved since is read at its new place, and one that
    was not there yet counts as its default, which is what that version did. The file of a chat template
    counts by its name: the plan has its text. An input in the user's home lies there, also where an earlier
    version took `~` for a folder's name.
    """
    stored, now = (
        {name: value for name, value in _with_template_by_name(settings).items() if value != {}}
        for settings in (stored, now)  # an empty table is the same as none of its settings
    )
    stored = _with_home(stored)
    moved = {f"labels.{name}": f"sampling.{name}" for name in MOVED_TO_SAMPLING}
    stored = {moved.get(name, name): value for name, value in stored.items()}
    stored = {name: _default_of(name) for name in now if name not in stored} | stored
    mode = now.get("labels.mode") if now.get("labels.mode") == stored.get("labels.mode") else None
    return [
        f"{name}: {stored.get(name)!r} in the store, "
        + (f"{now.get(name)!r} now" if name in now or _is_known(name) else "which needs the newer version")
        for name in sorted(set(stored) | set(now))
        if _counts(name, mode)
        and stored.get(name) != now.get(name)
        and not _only_adds_records(name, stored.get(name), now.get(name))
    ]


def _with_template_by_name(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    template = settings.get("input.chat_template")
    if not isinstance(template, str):
        return settings
    return {**settings, "input.chat_template": os.path.basename(template)}


def _with_home(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    _, home, below = str(settings.get("input.uri")).rpartition("/~/")
    return {**settings, "input.uri": os.path.abspath(os.path.expanduser(f"~/{below}"))} if home else settings


def _is_known(name: str) -> bool:
    """Whether this version has the setting, or a table of anybody's names in which it may stand."""
    field, below = _field_of(name)
    return field is not None and (not below or get_origin(field.annotation) is dict)


def _default_of(name: str) -> Any:
    """Default of a setting as JSON, by its dotted name; None where it has none."""
    field, below = _field_of(name)
    if field is None or below or field.is_required():
        return None
    return to_jsonable_python(field.get_default(call_default_factory=True))


def _field_of(name: str) -> tuple[FieldInfo | None, bool]:
    """The last setting on the way of a dotted name, and whether the name goes on below it; None where a
    section has no setting of that name."""
    model: type[BaseModel] | None = JobConfig
    field = None
    for part in name.split("."):
        if model is None:
            return field, True
        field = model.model_fields.get(part)
        if field is None:
            return None, False
        kinds = (field.annotation, *get_args(field.annotation))  # the latter of an optional section
        sections = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
        model = next(sections, None)
    return field, False
