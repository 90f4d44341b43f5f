"""What each step of a round is told to do: pure functions from the two files to those of its steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from cluster.rounds.config import Documents, RoundsConfig
from labeler.config.input_settings import STUDENT_ROLES
from logitstore.common.config_file import apply_override

Document = dict[str, Any]
LABEL_SETTINGS_OF_SCORES = ("top_k", "temperatures")
"""Settings of the job's [labels] that apply to given sequences; the others make sequences from prompts."""


def answer_job(
    documents: Documents, config: RoundsConfig, *, student: str, seed_step: int, out: str
) -> Document:
    """The student writes answers to the job's prompts, to its own ones where the job has two kinds. Next to
    nothing is kept of its own distribution."""
    job = copy.deepcopy(documents.job)
    teacher = {"model": student}
    given = job.get("teacher", {})
    kept = ("engine", "fake", "dtype", "max_model_len", "trust_remote_code", "engine_args")
    job["teacher"] = {name: given[name] for name in kept if name in given} | teacher
    job["labels"] = {"mode": "generate", "top_k": 1, "temperatures": [1.0]}
    sampling = job.setdefault("sampling", {})
    sampling["seed"] = int(sampling.get("seed", 0)) + seed_step
    job["output"] = {**job.get("output", {}), "uri": out}
    job = _changed(job, config.answer_set)
    if _has_student_prompts(job):
        job["input"]["prompt_seen"] = "student"
    return job


def _has_student_prompts(job: Document) -> bool:
    given = job.get("input", {})
    is_named = any(role in given.get("fields", {}) for role in STUDENT_ROLES)
    return is_named or given.get("student_system_prompt") is not None


def score_job(
    documents: Documents, config: RoundsConfig, *, answers: str, out: str, own_prompts: bool
) -> Document:
    """The teacher scores the answers, token by token; `own_prompts` says that the student saw others."""
    job = copy.deepcopy(documents.job)
    names = ("token_ids", "response_token_ids")
    job["input"] = {
        "uri": answers,
        "kind": "token_ids",
        "id": "id",
        "fields": {name: name for name in (*names, *(["student_token_ids"] if own_prompts else []))},
    }
    labels = job.get("labels", {})
    job["labels"] = {
        "mode": "score",
        "positions": "response",
        **{name: labels[name] for name in LABEL_SETTINGS_OF_SCORES if name in labels},
    }
    # Two answers of the same prompt are two sequences: their prompts are no duplicates to drop.
    job["filters"] = {**job.get("filters", {}), "duplicate_prompts": "keep"}
    job["output"] = {**job.get("output", {}), "uri": out}
    return _changed(job, config.score_set)


def training_run(
    documents: Documents, config: RoundsConfig, *, student: str, scores: Sequence[str], out: str
) -> Document:
    """Training goes on over the teacher's text and the student's own of all rounds so far."""
    run = copy.deepcopy(documents.train)
    run["student"] = {**run["student"], "model": student}
    run["student"].setdefault("tokenizer", documents.train["student"]["model"])
    own = [{"uri": uri, "weight": config.own_weight} for uri in scores]
    run["data"]["stores"] = [*_stores(run), *own]
    run["loss"] = {**run.get("loss", {}), "beta": config.beta}
    run["output"] = {**run.get("output", {}), "folder": out}
    return run


def evaluation_of_own_text(documents: Documents, scores: str) -> Document:
    """On everything that the student wrote: it has not been trained on it yet."""
    run = copy.deepcopy(documents.train)
    run["evaluation"] = {**run.get("evaluation", {}), "stores": [scores]}
    return run


def teacher_stores(documents: Documents) -> list[str]:
    """Where the teacher's own text lies."""
    return [store if isinstance(store, str) else store["uri"] for store in _stores(documents.train)]


def _stores(run: Document) -> list[Any]:
    stores = run.get("data", {}).get("stores", [])
    return list(stores) if isinstance(stores, list) else [stores]


def _changed(document: Document, overrides: Sequence[str]) -> Document:
    for override in overrides:
        apply_override(document, override)
    return document
