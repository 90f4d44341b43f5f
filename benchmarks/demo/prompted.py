"""A student that behaves as if it had the system prompt that only its teacher sees: its KL before and after.

The teacher answers the demo's prompts under a long system prompt, and its own model learns those answers
without it. Both steps are public commands in processes of their own, with the files `demo-prompted.toml` and
`demo-prompted-train.toml`; what is there already is not made again. KL is over the responses of held-out
records: KL(teacher with the system prompt || student without it).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.demo.demo import StepFailedError, Steps
from benchmarks.demo.options import add_measuring
from benchmarks.report.results import Figure, Result, publish
from labeler.config.loading import load_job
from logitstore.common.console import Console
from logitstore.store import LogitStore
from trainer.run.config import load_config
from trainer.run.file_names import METRICS_NAME

JOB_FILE, TRAIN_FILE = "demo-prompted.toml", "demo-prompted-train.toml"


@dataclass(frozen=True, slots=True)
class Student:
    """What a training run says of its student at one time; see the trainer's `metrics.json`."""

    kl: float
    top1_agreement: float
    acceptance_at_least: float
    num_sequences: int
    num_rows: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add_measuring(parser)


def run(args: argparse.Namespace) -> int:
    job_file, train_file = args.configs / JOB_FILE, args.configs / TRAIN_FILE
    job, train = load_job(str(job_file)), load_config(str(train_file))
    console = Console()
    steps = Steps(console)
    try:
        steps.run("label: with the system prompt", "label", "run", str(job_file))
        steps.run("train: without it", "train", "run", str(train_file))
    except StepFailedError as error:
        console.print(f"prompted: {error}", style="red", markup=False)
        return 1
    before, after = students_of(Path(train.output.folder))
    lengths = prompt_lengths(LogitStore.open(job.output.uri))
    publish(result_of(before, after, lengths), args.out, quiet=args.quiet)
    return 0


def students_of(folder: Path) -> tuple[Student, Student]:
    """The student of a training run, before and after."""
    metrics = json.loads((folder / METRICS_NAME).read_text())
    before, after = (
        Student(**{name: metrics[when][name] for name in Student.__slots__}) for when in ("before", "after")
    )
    return before, after


def prompt_lengths(store: LogitStore) -> tuple[float, float]:
    """Mean tokens of the teacher's prompts, and of the student's for the same responses."""
    pairs = [
        (one.prompt_length, len(one.student_prompt_ids))
        for one in store.iter_sequences(top_k=1)
        if one.student_prompt_ids is not None
    ]
    teacher, student = np.mean(pairs, axis=0)
    return float(teacher), float(student)


def result_of(before: Student, after: Student, lengths: tuple[float, float]) -> Result:
    """The table and its figures; `lengths` are those of `prompt_lengths`."""
    rows = [
        (name, one.kl, one.top1_agreement, one.acceptance_at_least)
        for name, one in (("before", before), ("after", after))
    ]
    figures = [
        Figure.of(f"{what}_{name}", value, unit)
        for name, *values in rows
        for what, unit, value in zip(("kl", "agreement", "acceptance"), ("nats", "", ""), values, strict=True)
    ]
    teacher, student = lengths
    return Result.of(
        "prompted",
        meaning=f"Without the system prompt the student is {before.kl:.3g} nats from its teacher, which sees "
        f"it, and after training {after.kl:.3g} nats, with {student:.0f} prompt tokens for {teacher:.0f}.",
        columns=("student without the system prompt", "KL, nats", "top-1 agreement", "accepted, at least"),
        rows=rows,
        figures=[
            *figures,
            Figure.of("kl_after_over_before", after.kl / before.kl, ""),
            Figure.of("teacher_prompt_tokens", teacher, "tokens"),
            Figure.of("student_prompt_tokens", student, "tokens"),
        ],
        notes=(
            f"KL(teacher with the system prompt || student without it) over {after.num_rows:,} response "
            f"tokens of {after.num_sequences} held-out records.",
            "The student is the teacher's own model, with LoRA adapters merged after training.",
        ),
    )
