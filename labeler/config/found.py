"""What a job is not told and can be found: the kind of its input, whether answers are given, the GPUs here.

Only what neither the file nor an option says is looked for, and each thing that was found is said in a line.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from labeler.config.input_settings import FIELDS_BY_KIND
from logitstore.common.config_file import ConfigError
from logitstore.common.secrets import redact_text, redact_uri
from logitstore.errors import StoreError
from logitstore.inputs.parts import is_answer
from logitstore.inputs.reading import iter_records

FIELDS_OF_ROLE: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "token_ids": ("token_ids", "input_ids"),
    "prompt": ("prompt", "question", "instruction", "query", "problem"),
    "response": ("response", "completion", "answer", "output", "solution"),
    "text": ("text",),
    "system": ("system", "system_prompt"),
    "context": ("context", "input"),
}
"""Names that data sets give to what a record holds, the usual one first. "input" is a prompt's context, as
in Alpaca."""
RECORDS_LOOKED_AT = 20
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Shape:
    """What records hold, as far as their fields tell."""

    kind: str
    mode: Literal["score", "generate"]
    fields: dict[str, str] = field(default_factory=dict)
    """Field by role, where it is not the role's own name."""


def find_settings(document: dict[str, Any]) -> list[str]:
    """Add to a job's document what is not in it and can be found; a line about each thing that was.

    Raises ConfigError where records tell nothing.
    """
    lines = _find_input(document) if not _is_set(document, "input", "kind") else []
    if not _is_set(document, "workers", "gpus") and not _is_set(document, "workers", "address"):
        lines += _find_gpus(document)
    return lines


def shape_of(records: list[dict[str, Any]]) -> Shape | None:
    """What the records hold; None where no known field tells it."""
    first = records[0]
    for name in (*FIELDS_OF_ROLE["messages"], *FIELDS_OF_ROLE["prompt"]):
        if _is_conversation(first.get(name)):
            answered = all(_is_answered(record.get(name)) for record in records)
            named = {} if name == "messages" else {"messages": name}
            return Shape("messages", "score" if answered else "generate", named)
    fields = {role: name for role in FIELDS_OF_ROLE if (name := _field(records, role)) is not None}
    if "token_ids" in fields:
        return Shape("token_ids", "score", _renamed(fields, "token_ids"))
    if "prompt" in fields and "response" in fields:
        return Shape("prompt_response", "score", _renamed(fields, "prompt", "response", "system", "context"))
    if "prompt" in fields:
        return Shape("prompt", "generate", _renamed(fields, "prompt", "system", "context"))
    return Shape("text", "score", _renamed(fields, "text")) if "text" in fields else None


def _find_input(document: dict[str, Any]) -> list[str]:
    section = document.get("input")
    uri = section.get("uri") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(uri, str) or not uri or section.get("fields"):
        return []  # what is missing or wrong is told by the check of the whole job
    records = _first_records(uri, section.get("storage_options"))
    shape = shape_of(records) if records else None
    if shape is None:
        seen = f"the fields {', '.join(map(repr, records[0]))}" if records else "no readable record"
        raise ConfigError(
            f"input.kind cannot be found: {redact_uri(uri)!r} begins with {seen}; set --set input.kind=KIND, "
            f"one of {', '.join(FIELDS_BY_KIND)}, and --set input.fields.ROLE=FIELD for fields of other names"
        )
    section["kind"] = shape.kind
    if shape.fields:
        section["fields"] = dict(shape.fields)
    line = f'found: input.kind = "{shape.kind}"'
    if shape.fields:
        line += " with " + ", ".join(f"{role} in the field {name!r}" for role, name in shape.fields.items())
    labels = document.setdefault("labels", {})
    if isinstance(labels, dict) and "mode" not in labels:
        labels["mode"] = shape.mode
        reason = (
            "the teacher writes the answers"
            if shape.mode == "generate"
            else "what the records hold is labeled"
        )
        line += f'; labels.mode = "{shape.mode}": {reason}'
    return [line]


def _first_records(uri: str, storage_options: Any) -> list[dict[str, Any]]:
    options = storage_options if isinstance(storage_options, Mapping) else None
    try:
        found = itertools.islice(iter_records(uri, storage_options=options), RECORDS_LOOKED_AT)
        return [raw.record for raw in found if raw.record is not None]
    except (StoreError, OSError) as error:
        raise ConfigError(f"input.uri: {redact_text(str(error))}") from None


def _find_gpus(document: dict[str, Any]) -> list[str]:
    """One replica for every GPU, or for every group of `teacher.tensor_parallel_size`."""
    teacher, workers = document.get("teacher"), document.get("workers")
    if not isinstance(teacher, dict) or not isinstance(workers, dict) or teacher.get("engine") == "fake":
        return []
    num_gpus = _num_gpus()
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


def _num_gpus() -> int:
    """GPUs that the installed PyTorch, and so vLLM, can use here."""
    import torch  # takes a second or two, as the engine will anyway

    return torch.cuda.device_count()


def _is_set(document: Mapping[str, Any], section: str, name: str) -> bool:
    table = document.get(section)
    return isinstance(table, Mapping) and table.get(name) is not None


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_answered(messages: Any) -> bool:
    return _is_conversation(messages) and is_answer(messages[-1])


def _field(records: list[dict[str, Any]], role: str) -> str | None:
    """The field of a role: in all records, or in some where a record may lack it."""
    enough = any if role in ("system", "context") else all
    for name in FIELDS_OF_ROLE[role]:
        if enough(_fits(role, record.get(name)) for record in records):
            return name
    return None


def _fits(role: str, value: Any) -> bool:
    if role == "token_ids":
        return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
    return isinstance(value, str) or (
        role == "prompt" and isinstance(value, list) and all(isinstance(item, str) for item in value)
    )


def _renamed(fields: Mapping[str, str], *roles: str) -> dict[str, str]:
    """The fields of these roles; those that a record may lack are named whatever they are called."""
    return {
        role: fields[role]
        for role in roles
        if role in fields and (fields[role] != role or role in ("system", "context"))
    }
