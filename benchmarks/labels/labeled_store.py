"""A store that the labeler itself makes of the prompts at hand: real labels for the other measurements.

The job is run as the command that a user would type, once per teacher, input and K; a later measurement
finds it finished. Where the store lies is derived from what it holds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeler.config.input_settings import FIELDS_BY_KIND, InputKind
from labeler.config.loading import (
    InputConfig,
    JobConfig,
    LabelsConfig,
    OutputConfig,
    SamplingConfig,
    TeacherConfig,
    WorkersConfig,
)
from logitstore.inputs.reading import iter_records
from logitstore.job_objects import STATUS_NAME
from logitstore.job_parsing import parse_status
from logitstore.store import LogitStore

DEMO_PROMPTS = Path(__file__).parents[1] / "demo_data" / "pairs.jsonl"
STORES = Path("build/bench-labels")
TEMPERATURES = (1.0, 2.0, 4.0)
UNIT_RECORDS = 4
RECORDS = 128
"""From the start of the input, where --records does not say it."""
MAX_NEW_TOKENS = 128
"""Most tokens of a response that the teacher writes; enough to see its distribution and rate."""
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "VLLM_LOGGING_LEVEL": "WARNING", "OMP_NUM_THREADS": "1"}
"""Defaults for the job's processes: nothing is reported anywhere, one thread per core."""


@dataclass(frozen=True, slots=True)
class LabelingJob:
    """What is labeled, and by how many engines."""

    teacher: str
    input: str
    fields: dict[str, str]
    """Names of the record's fields by role, where they differ."""
    top_k: int
    temperatures: tuple[float, ...]
    limit: int
    """Records from the start of the input."""
    replicas: int
    gpus: float
    """GPUs of a replica; 0 runs on the CPU."""

    @property
    def store(self) -> Path:
        """Same labels, same folder: how many engines make them does not count."""
        labels = (
            os.path.abspath(self.teacher) if os.path.isdir(self.teacher) else self.teacher,
            os.path.abspath(self.input) if "://" not in self.input else self.input,
            sorted(self.fields.items()), self.top_k, self.temperatures, self.limit,
        )  # fmt: skip
        return STORES / hashlib.blake2b(repr(labels).encode(), digest_size=8).hexdigest()

    @classmethod
    def of(cls, args: argparse.Namespace, *, temperature: float = 1.0) -> LabelingJob:
        """The job of a command's common arguments; its stored normalisers cover `temperature`."""
        within = TEMPERATURES[0] <= temperature <= TEMPERATURES[-1]
        return cls(
            teacher=args.teacher,
            input=args.input or str(DEMO_PROMPTS),
            fields=args.fields,
            top_k=max(args.top_k),
            temperatures=TEMPERATURES if within else tuple(sorted({*TEMPERATURES, temperature})),
            limit=args.records or RECORDS,
            replicas=1 if args.quick or args.gpus or len(os.sched_getaffinity(0)) < 2 else 2,
            gpus=args.gpus,
        )


def finished_store(job: LabelingJob) -> LogitStore:
    """The job's store, labeled now if it is not there."""
    if not _is_finished(job.store):
        label(job)
    return LogitStore.open(job.store)


def label(job: LabelingJob) -> float:
    """Label into a fresh store; seconds of the whole command."""
    shutil.rmtree(job.store, ignore_errors=True)
    STORES.mkdir(parents=True, exist_ok=True)
    return run_job(configuration(job), job.store.with_suffix(".json"))


def run_job(config: JobConfig, file: Path) -> float:
    """`penumbra label run FILE`, with the job written there; its seconds.

    RuntimeError with the command's last words if it fails.
    """
    file.write_text(config.model_dump_json(indent=1), encoding="utf-8")
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-P", "-m", "labeler", "run", "--quiet", str(file)],
        env={**ENVIRONMENT, **os.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"labeling ended with status {process.returncode}: {process.stderr[-2000:]}")
    return time.perf_counter() - started


def _is_finished(store: Path) -> bool:
    status = store / STATUS_NAME
    return status.exists() and parse_status(status.read_bytes()).state == "finished"


def configuration(job: LabelingJob) -> JobConfig:
    """The labeler's own configuration of the job, read off the first record of its input.

    ValueError where no record can be read, or none of its fields is a prompt or text.
    """
    record = _first_record(job.input)
    kind = _kind_of(record, job)
    generates = kind == "prompt" or (kind == "messages" and record["messages"][-1]["role"] != "assistant")
    return JobConfig(
        teacher=TeacherConfig(model=job.teacher),
        input=InputConfig(uri=job.input, kind=kind, fields=job.fields, limit=job.limit),
        labels=LabelsConfig(
            mode="generate" if generates else "score",
            top_k=job.top_k,
            temperatures=job.temperatures,
        ),
        sampling=SamplingConfig(max_tokens=MAX_NEW_TOKENS),
        output=OutputConfig(uri=str(job.store), unit_size=UNIT_RECORDS),
        workers=WorkersConfig(replicas=job.replicas, gpus=job.gpus),
    )


def _first_record(uri: str) -> dict[str, Any]:
    for raw in iter_records(uri):
        if raw.record is not None:
            return raw.record
    raise ValueError(f"{uri} holds no record that can be read; give JSONL, Parquet or Arrow files of prompts")


def _kind_of(record: dict[str, Any], job: LabelingJob) -> InputKind:
    """The labeler's kind of input with the most roles that the record's fields fill."""
    filled: list[InputKind] = [
        kind
        for kind, roles in FIELDS_BY_KIND.items()
        if all(job.fields.get(role, role) in record for role in roles)
    ]
    if not filled:
        raise ValueError(
            f"{job.input} has records with the fields {', '.join(sorted(record))}, none of which is a prompt "
            "or text; name them, for example --fields prompt=question,response=answer"
        )
    return max(filled, key=lambda kind: len(FIELDS_BY_KIND[kind]))
