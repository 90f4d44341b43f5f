"""Asking the teacher about prompts by a labeling job of its own, with the same plan, leases and resuming.

The questions stand in `OUT.asks.jsonl`, the replies with their labels in the store `OUT.asked`; both are
kept, so that a command which is given again asks nothing twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.config.found import find_settings
from labeler.config.loading import JobConfig, checked_job
from labeler.curation.sifting import Source
from labeler.errors import OwnJobError
from logitstore import LogitStore
from logitstore.common.config_file import ConfigError
from logitstore.common.exit_status import ExitStatus
from logitstore.contamination.prompt_texts import PromptText, Unreadable
from logitstore.inputs.json_text import json_text

SECTIONS = ("teacher", "workers", "limits", "cost")
"""Sections of the user's job that the asking job takes over whole."""
TEMPLATE_KEYS = ("chat_template", "chat_template_kwargs", "system_prompt")
"""Settings of `[input]` that say how the teacher is spoken to."""
KEEP_ALL = {"truncated": "flag", "empty": "keep", "repeated": "keep", "duplicate_prompts": "keep"}


@dataclass(frozen=True)
class Question:
    """One prompt that the teacher is asked about."""

    ask_id: str
    prompt: PromptText


@dataclass(frozen=True)
class AskPaths:
    """What a step leaves beside its output."""

    out: Path

    @property
    def asks(self) -> Path:
        return self.beside(".asks.jsonl")

    @property
    def store(self) -> Path:
        return self.beside(".asked")

    @property
    def dropped(self) -> Path:
        return self.beside(".dropped.jsonl")

    def beside(self, suffix: str) -> Path:
        return self.out.with_name(self.out.name.removesuffix(".jsonl") + suffix)


def read_questions(source: Source) -> tuple[list[Question], list[dict[str, Any]]]:
    """The prompts with an id each, and the lines of those dropped: unreadable or of a repeated id."""
    questions: dict[str, Question] = {}
    dropped: list[dict[str, Any]] = []
    for one in source.prompts():
        if isinstance(one, Unreadable):
            further = {"reason": one.reason, "text": one.text}
            dropped.append(dropped_line(one.place, None, "unreadable", one.record, **further))
            continue
        ask_id = one.record_id or hashlib.blake2b(one.text.encode(), digest_size=16).hexdigest()
        if ask_id in questions:
            first = questions[ask_id].prompt.place
            dropped.append(dropped_line(one.place, ask_id, "repeated", one.record, partner=first))
            continue
        questions[ask_id] = Question(ask_id, one)
    return list(questions.values()), dropped


def dropped_line(
    place: str, record_id: str | None, method: str, record: Mapping[str, Any] | None, **further: Any
) -> dict[str, Any]:
    """What is written of a record that is dropped, in the form of `sift`'s."""
    return {"place": place, "id": record_id, "method": method, **further, "record": record}


def filled(template: str, texts: Mapping[str, str]) -> str:
    """The template with {name} replaced, once: braces in the texts mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found.group(1), found.group(0)), template)


def ask(
    document: Mapping[str, Any],
    questions: Iterable[tuple[str, str]],
    paths: AskPaths,
    sampling: Mapping[str, Any],
    *,
    rows: bool,
    quiet: bool,
    also_counted: Sequence[str] = (),
) -> tuple[JobConfig, LogitStore]:
    """The job that put all (id, text) to the teacher, and its store with the replies.

    Args:
        rows: whether the replies' label rows are wanted; without, a server may give texts alone.
        also_counted: stores whose money counts for `limits.max_cost` too.

    Raises:
        OwnJobError: the job ended before its end.
    """
    from labeler.driver.run import RunOptions, run

    paths.out.parent.mkdir(parents=True, exist_ok=True)
    write_lines(paths.asks, ({"id": ask_id, "prompt": text} for ask_id, text in questions))
    document = deepcopy(dict(document))
    for line in find_settings({**document, "input": {"kind": "prompt"}}):
        if not quiet:
            print(line, file=sys.stderr)
    job = asking_job(document, paths, sampling, rows=rows)
    status, _ = run(job, RunOptions(quiet=quiet, also_counted=tuple(also_counted)))
    if status:
        raise unfinished("the teacher did not answer everything", status, "the same command")
    return job, LogitStore.open(str(paths.store))


def unfinished(what: str, status: ExitStatus, command: str) -> OwnJobError:
    """The error of a step whose job ended with `status`; `command` is what goes on, or will once it can."""
    remedy = "correct what is said there and give" if status is ExitStatus.WRONG else "to go on, give"
    return OwnJobError(f"{what} (exit status {int(status)}, see above); {remedy} {command} again", status)


def asking_job(
    document: Mapping[str, Any],
    paths: AskPaths,
    sampling: Mapping[str, Any],
    *,
    rows: bool,
    where: str | None = None,
) -> JobConfig:
    """The job that asks the teacher of the user's `document`.

    Raises ConfigError, also for a server that gives texts alone where `rows` are wanted.
    """
    texts_alone = _gives_texts_alone(document)
    if rows and texts_alone:
        raise ConfigError(
            'teacher.api.endpoint = "chat" gives texts alone, and a judge reads the probabilities of digits; '
            'set "completions" for a server that takes and names token ids, or give judge another teacher'
        )
    told = document.get("input", {})
    labels = {"rows": False} if texts_alone else _top_k(document)
    asking = {
        **{name: document[name] for name in SECTIONS if name in document},
        "input": {
            "uri": str(paths.asks),
            "kind": "prompt",
            "id": "id",
            **{key: told[key] for key in TEMPLATE_KEYS if key in told},
        },
        "labels": {"mode": "generate", "temperatures": [1.0], **labels},
        "sampling": dict(sampling),
        "filters": KEEP_ALL,
        "output": {"uri": str(paths.store)},
    }
    return checked_job(asking, where)


def _gives_texts_alone(document: Mapping[str, Any]) -> bool:
    teacher = document.get("teacher")
    api = teacher.get("api") if isinstance(teacher, Mapping) else None
    return isinstance(api, Mapping) and api.get("endpoint") == "chat"


def _top_k(document: Mapping[str, Any]) -> dict[str, Any]:
    labels = document.get("labels", {})
    return {"top_k": labels["top_k"]} if "top_k" in labels else {}


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines as a whole or not at all; how many."""
    part, count = path.with_name(path.name + ".part"), 0
    with open(part, "wb") as file:
        for value in values:
            file.write(json_text(value).encode() + b"\n")
            count += 1
    os.replace(part, path)
    return count
