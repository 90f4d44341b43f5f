"""What a job is not told and can be found: the kind of its input, whether answers are given, the GPUs here.

Only what neither the file nor an option says is looked for, and each thing that was found is said in a line.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from labeler.config.found_ids import find_id
from labeler.config.input_settings import FIELDS_BY_KIND
from labeler.config.loading import JobConfig, checked_job, job_document
from labeler.config.record_shape import Shape, fits_in_some, shape_of
from logitstore.common.config_file import ConfigError
from logitstore.common.secrets import redact_text, redact_uri
from logitstore.errors import StoreError, UnsupportedInputError
from logitstore.inputs.identity import lookup_field
from logitstore.inputs.listing import form_of, list_files
from logitstore.inputs.reading import iter_records

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
    shape = _shape(redact_uri(uri), records, given, error)
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


def _shape(uri: str, records: list[dict[str, Any]], given: Mapping[str, str], error: str) -> Shape:
    """What the first records are. Raises ConfigError where they tell nothing, or cannot be read (`error`)."""
    if not records:
        raise ConfigError(f"input.kind cannot be found: {uri!r} begins with no record ({error or 'empty'})")
    shape = shape_of(records, given)
    if shape is None:
        seen = f"the fields {', '.join(map(repr, records[0]))}"
        raise ConfigError(
            f"input.kind cannot be found: {uri!r} begins with {seen}{fits_in_some(records)}; set "
            f"--set input.kind=KIND, one of {', '.join(FIELDS_BY_KIND)}, and --set "
            "input.fields.ROLE=FIELD for fields of other names"
        )
    return shape


def _lists_of_texts(records: list[dict[str, Any]], shape: Shape) -> str:
    name = shape.fields.get("prompt", "prompt")
    if shape.kind != "prompt" or not isinstance(lookup_field(records[0], name), list):
        return ""
    return f"; {name!r} is a list of texts: input.list_of_texts says what becomes of it"


def _reading(read: Callable[[], Read]) -> Read:
    """What `read` gives. Raises ConfigError where the input cannot be read."""
    try:
        return read()
    except UnsupportedInputError as error:  # wherever it is read
        raise ConfigError(f"input.uri: {redact_text(str(error))}") from None
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
    """One replica for every GPU, or for as many as an engine has ranks. A teacher behind an API uses none."""
    teacher, workers = document.get("teacher"), document.get("workers")
    if (
        not isinstance(teacher, dict)
        or not isinstance(workers, dict)
        or teacher.get("engine", "vllm") != "vllm"
    ):
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
    tensor, pipeline = teacher.get("tensor_parallel_size", 1), teacher.get("pipeline_parallel_size", 1)
    machines = workers.get("machines", 1)
    if not all(isinstance(number, int) and number >= 1 for number in (tensor, pipeline, machines)):
        return []  # told by the check of the whole job, as what does not divide is
    ranks = max(tensor * pipeline // machines, 1)
    workers["gpus"] = ranks  # more than there are is refused with both numbers, and not left to the CPU
    line = f"found: {num_gpus} {'GPU' if num_gpus == 1 else 'GPUs'}; workers.gpus = {ranks}"
    if "replicas" not in workers and "machines" not in workers and ranks <= num_gpus:
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
