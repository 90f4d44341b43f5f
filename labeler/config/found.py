"""What a job is not told and can be found: the kind of its input, whether answers are given, the GPUs here.

Only what neither the file nor an option says is looked for, and each thing that was found is said in a line.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from labeler.config.found_ids import ID_FIELDS, find_id
from labeler.config.input_settings import FIELDS_BY_KIND
from labeler.config.loading import JobConfig, checked_job, job_document
from logitstore.common.config_file import ConfigError
from logitstore.common.secrets import redact_text, redact_uri
from logitstore.errors import StoreError
from logitstore.inputs.identity import lookup_field
from logitstore.inputs.listing import form_of, list_files
from logitstore.inputs.parts import is_answer
from logitstore.inputs.reading import iter_records

FIELDS_OF_ROLE: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "body.messages"),
    "token_ids": ("token_ids", "input_ids"),
    "prompt": ("prompt", "question", "instruction", "query", "problem", "turns", "body.prompt"),
    "response": ("response", "completion", "answer", "output", "solution"),
    "text": ("text",),
    "system": ("system", "system_prompt"),
    "context": ("context", "input"),
    "tools": ("tools", "body.tools"),
}
"""Names that data sets give to what a record holds, the usual one first. "input" is a prompt's context, as
in Alpaca; "body" is what a line of OpenAI's batch files sends."""
OPTIONAL_ROLES = ("system", "context", "tools")
RECORDS_LOOKED_AT = 20
FORM_NAMES = {
    "jsonl": "JSON",
    ".gz": "gzipped JSON",
    ".zst": "zstandard JSON",
    "parquet": "Parquet",
    "arrow": "Arrow",
    "csv": "CSV",
}
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Shape:
    """What records hold, as far as their fields tell."""

    kind: str
    mode: Literal["score", "generate"]
    fields: dict[str, str] = field(default_factory=dict)
    """Field by role, where it is not the role's own name."""
    form: str = ""
    """What files of this form are called."""
    unused: tuple[str, ...] = ()
    """Fields that are no part of what the teacher sees."""


def load_found_job(
    path: str | None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    *,
    options: Mapping[str, str | None] = MappingProxyType({}),
) -> tuple[JobConfig, list[str]]:
    """As `loading.load_job`, with what was not told found, and a line about each thing that was."""
    document = job_document(path, overrides, environ, options=options)
    found = find_settings(document)
    return checked_job(document, path), found


def load_input_found(
    path: str | None, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> tuple[JobConfig, list[str]]:
    """As `load_found_job` for a job that runs elsewhere: its input is looked at, this machine's GPUs are not.

    The job is whole, so that where it runs nothing is left to be found otherwise than here. Loads no torch.
    """
    document = job_document(path, overrides, environ)
    found = find_input(document)
    return checked_job(document, path), found


def find_settings(document: dict[str, Any]) -> list[str]:
    """Add to a job's document what is not in it and can be found; a line about each thing that was.

    Raises ConfigError where records tell nothing.
    """
    lines = find_input(document)
    if not _is_set(document, "workers", "gpus") and not _is_set(document, "workers", "address"):
        lines += _find_gpus(document)
    return lines


def shape_of(records: list[dict[str, Any]], given: Mapping[str, str] = MappingProxyType({})) -> Shape | None:
    """What the records hold; None where no known field tells it. `given` are fields by role."""
    fields = {role: name for role in FIELDS_OF_ROLE if (name := _field(records, role, given)) is not None}
    chat = _chat_field(records[0], given)
    if chat is not None:
        answered = all(_is_answered(lookup_field(record, chat)) for record in records)
        shape = Shape("messages", "score" if answered else "generate", form=_form_of_chats(records, chat))
        return _named(shape, records, {**fields, "messages": chat}, "messages", "tools", "system")
    if "token_ids" in fields:
        return _named(Shape("token_ids", "score"), records, fields, "token_ids")
    if "prompt" in fields and "response" in fields:
        form = "Alpaca's form" if {"instruction", "output"} <= {fields["prompt"], fields["response"]} else ""
        shape = Shape("prompt_response", "score", form=form)
        return _named(shape, records, fields, "prompt", "response", "system", "context")
    if "prompt" in fields:
        return _named(Shape("prompt", "generate"), records, fields, "prompt", "system", "context")
    return _named(Shape("text", "score"), records, fields, "text") if "text" in fields else None


def _named(shape: Shape, records: list[dict[str, Any]], fields: Mapping[str, str], *roles: str) -> Shape:
    """The shape with the fields of its roles, and with those that stay unread."""
    read = {fields[role].partition(".")[0] for role in roles if role in fields}
    unused = tuple(name for name in records[0] if name not in (*read, *ID_FIELDS, "documents"))
    return replace(shape, fields=_renamed(fields, *roles), unused=unused)


def _chat_field(record: dict[str, Any], given: Mapping[str, str]) -> str | None:
    names = (*FIELDS_OF_ROLE["messages"], *FIELDS_OF_ROLE["prompt"])
    if "messages" in given or "prompt" in given:
        names = tuple(given[role] for role in ("messages", "prompt") if role in given)
    return next((name for name in names if _is_conversation(lookup_field(record, name))), None)


def _form_of_chats(records: list[dict[str, Any]], name: str) -> str:
    if name.startswith("body."):
        return "an OpenAI batch file"
    messages = lookup_field(records[0], name)
    return "ShareGPT's form" if "from" in messages[0] else "OpenAI's form of chats"


def find_input(document: dict[str, Any]) -> list[str]:
    """Add to a job's document the kind of its input and what follows from it, unless it says the kind.

    Raises ConfigError where the records tell nothing, or cannot be read.
    """
    if _is_set(document, "input", "kind"):
        return []
    section = document.get("input")
    uri = section.get("uri") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(uri, str) or not uri:
        return []  # what is missing or wrong is told by the check of the whole job
    given = section.get("fields") or {}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given.values()):
        return []
    if given and "kind" not in section:
        return []
    records, files, error = _reading(lambda: _first_records(uri, section.get("storage_options")))
    shape = shape_of(records, given) if records else None
    if shape is None:
        seen = (
            f"the fields {', '.join(map(repr, records[0]))}" if records else f"no record ({error or 'empty'})"
        )
        raise ConfigError(
            f"input.kind cannot be found: {redact_uri(uri)!r} begins with {seen}{_in_some(records)}; set "
            f"--set input.kind=KIND, one of {', '.join(FIELDS_BY_KIND)}, and --set "
            "input.fields.ROLE=FIELD for fields of other names"
        )
    section["kind"] = shape.kind
    if shape.fields or given:
        section["fields"] = {**shape.fields, **given}
    line = f'found: input.kind = "{shape.kind}"'
    if shape.fields:
        line += " with " + ", ".join(f"{role} in the field {name!r}" for role, name in shape.fields.items())
    ids = ""
    if "id" not in section:
        section["id"], ids = _reading(lambda: find_id(section, document.get("output"), records))
    if section["id"] and ids:
        line, ids = line + ids, ""
    line += f" ({', '.join(part for part in (shape.form, files) if part)})"
    labels = document.setdefault("labels", {})
    if isinstance(labels, dict) and "mode" not in labels:
        labels["mode"] = shape.mode
        reason = (
            "the teacher writes the answers"
            if shape.mode == "generate"
            else "what the records hold is labeled"
        )
        line += f'; labels.mode = "{shape.mode}": {reason}'
    line += _lists_of_texts(records, shape) + ids
    if shape.unused:
        line += f"; not read: {', '.join(shape.unused)}"
    return [line]


def _in_some(records: list[dict[str, Any]]) -> str:
    """What would tell the kind, were it not for some of the records."""
    for role in ("messages", "token_ids", "prompt", "text"):
        for name in FIELDS_OF_ROLE[role]:
            count = sum(_fits(role, lookup_field(record, name)) for record in records)
            if count:
                return f", and {name!r} fits {role} in {count} of the first {len(records)} records only"
    return ""


def _lists_of_texts(records: list[dict[str, Any]], shape: Shape) -> str:
    name = shape.fields.get("prompt", "prompt")
    if shape.kind != "prompt" or not isinstance(lookup_field(records[0], name), list):
        return ""
    return f"; {name!r} is a list of texts: input.list_of_texts says what becomes of it"


def _reading(read: Callable[[], Read]) -> Read:
    """What `read` gives. Raises ConfigError where the input cannot be read."""
    try:
        return read()
    except (StoreError, OSError) as error:
        raise ConfigError(
            f"input.uri: {redact_text(str(error))}; where the input cannot be read from here, set input.kind "
            "and labels.mode"
        ) from None


def _first_records(uri: str, storage_options: Any) -> tuple[list[dict[str, Any]], str, str]:
    """The first records of the input, what its files are in words, and why the first bad one is bad."""
    options = storage_options if isinstance(storage_options, Mapping) else None
    forms = Counter(form_of(path) for path, _ in list_files(uri, storage_options=options))
    found = itertools.islice(iter_records(uri, storage_options=options), RECORDS_LOOKED_AT)
    records, errors = [], []
    for raw in found:
        if raw.record is not None:
            records.append(raw.record)
        elif raw.error is not None:
            errors.append(f"{raw.file}: {raw.error}")
    files = ", ".join(
        f"{count} {FORM_NAMES[form]} {'file' if count == 1 else 'files'}"
        for form, count in forms.items()
        if form is not None
    )
    return records, files, errors[0] if errors else ""


def _find_gpus(document: dict[str, Any]) -> list[str]:
    """One replica for every GPU, or for every group of `teacher.tensor_parallel_size`."""
    teacher, workers = document.get("teacher"), document.get("workers")
    if not isinstance(teacher, dict) or not isinstance(workers, dict) or teacher.get("engine") == "fake":
        return []
    num_gpus = gpus_here()
    if not num_gpus:
        there = len(list(NVIDIA_GPUS.iterdir())) if NVIDIA_GPUS.is_dir() else 0
        if there and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            return [
                f"found: {there} NVIDIA GPUs, which the installed PyTorch cannot use; the CPU labels. "
                "Install vLLM's GPU build for them"
            ]
        return ["found: no GPU; workers.gpus = 0, the CPU labels"]
    ranks = teacher.get("tensor_parallel_size", 1)
    if not isinstance(ranks, int) or not 1 <= ranks <= num_gpus:
        return []
    workers["gpus"] = ranks
    line = f"found: {num_gpus} {'GPU' if num_gpus == 1 else 'GPUs'}; workers.gpus = {ranks}"
    if "replicas" not in workers and "machines" not in workers:
        workers["replicas"] = num_gpus // ranks
        line += f", workers.replicas = {workers['replicas']}"
    return [line]


def gpus_here() -> int:
    """GPUs that the installed PyTorch, and so vLLM, can use here."""
    import torch  # takes a second or two, as the engine will anyway

    return torch.cuda.device_count()


def _is_set(document: Mapping[str, Any], section: str, name: str) -> bool:
    table = document.get(section)
    return isinstance(table, Mapping) and table.get(name) not in (None, "auto")


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_answered(messages: Any) -> bool:
    return _is_conversation(messages) and is_answer(messages[-1])


def _field(records: list[dict[str, Any]], role: str, given: Mapping[str, str]) -> str | None:
    """The field of a role: in all records, or in some where a record may lack it."""
    enough = any if role in OPTIONAL_ROLES else all
    for name in (given[role],) if role in given else FIELDS_OF_ROLE[role]:
        if enough(_fits(role, lookup_field(record, name)) for record in records):
            return name
    return None


def _fits(role: str, value: Any) -> bool:
    if role == "messages":
        return _is_conversation(value)
    if role == "token_ids":
        return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
    if role == "tools":
        return bool(value)
    is_listed = role in ("prompt", "text") and isinstance(value, list) and bool(value)
    return isinstance(value, str) or (is_listed and all(isinstance(item, str) for item in value))


def _renamed(fields: Mapping[str, str], *roles: str) -> dict[str, str]:
    """The fields of these roles; those that a record may lack are named whatever they are called."""
    return {
        role: fields[role]
        for role in roles
        if role in fields and (fields[role] != role or role in ("system", "context"))
    }
