"""The demo: the commands a user would type, one after the other, and a report at the end.

Two jobs label into two stores (the teacher answers prompts; given answers are scored), both stores are
verified against their inputs, a small student learns from them, another learns from their text alone, and a
page shows what came of it. Every step is a public command in a process of its own. A second run finds the
labels finished and the student trained on the same labels with the same settings, so it only verifies and
reports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.demo.answers import read_answers
from benchmarks.demo.report import (
    SEQUENCES_PER_STORE,
    Evaluation,
    Report,
    Stage,
    StoreSummary,
    Training,
    figure_rows,
    summarise_store,
    write_report,
)
from benchmarks.report.environment import describe_hardware, package_versions
from labeler.config.loading import load_job
from logitstore.common.console import Console
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabelRows
from logitstore.rows.temperature import log_tail_mass, logprobs
from logitstore.store import LogitStore
from logitstore.students.snapshots import read_snapshots
from logitstore.viewer.overview import StoreView
from logitstore.viewer.static import static_page
from logitstore.viewer.student_view import StudentView
from trainer.run.config import TrainConfig, load_config, resolved
from trainer.run.file_names import CONFIG_NAME, METRICS_NAME

REQUIRED_KL_FALL = 1 / 3
"""The demo fails if KL(teacher, student) on held-out records does not fall by more than this share. What the
teacher writes, and so the fall, differs from one labeling to the next: 46% to 55% were seen."""

ANSWERS_NAME = "answers.json"

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
"""Defaults for the demo's processes: nothing is fetched and nothing is reported anywhere."""


class StepFailedError(RuntimeError):
    """A command of the demo ended with another status than 0."""


@dataclass(slots=True)
class Steps:
    """Runs commands of the project and keeps how long each took."""

    console: Console
    done: list[Stage] = field(default_factory=list)

    def run(self, name: str, *arguments: str) -> None:
        """`penumbra arguments`, with its output on this terminal."""
        command = " ".join(["penumbra", *arguments])
        self.console.rule(f"[bold]{name}")
        self.console.print(f"$ {command}", style="dim", markup=False, highlight=False)
        started = time.perf_counter()
        status = subprocess.run(
            [sys.executable, "-P", "-m", "logitstore.common.penumbra", *arguments],
            env={**ENVIRONMENT, **os.environ},
            check=False,
        ).returncode
        self.done.append(Stage(name, command, time.perf_counter() - started))
        if status:
            raise StepFailedError(f"`{command}` ended with status {status}; its message stands above")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="folder of the demo-*.toml")
    parser.add_argument("--report", type=Path, default=Path(".demo/report/report.html"), help="page to write")


def run(args: argparse.Namespace) -> int:
    console = Console()
    job_files = [args.configs / "demo-generate.toml", args.configs / "demo-score.toml"]
    train_file = args.configs / "demo-train.toml"
    jobs = [load_job(str(file)) for file in job_files]
    train = load_config(str(train_file))
    steps = Steps(console)
    try:
        for file, job in zip(job_files, jobs, strict=True):
            steps.run(f"label: {job.labels.mode}", "label", "run", str(file))
        for job in jobs:
            steps.run("verify", "store", "verify", job.output.uri, "--against", job.input.uri)
        if train.student.model is not None:
            steps.run("student", "bench", "student", "--out", train.student.model)
        steps.run("train: distillation", "train", "run", *training(train_file, []))
        # The same start, text, order and steps; what differs is that no teacher's distribution is read.
        steps.run("train: text alone", "train", "run", *training(train_file, text_alone(train)))
        steps.run("answers", "bench", "answers", *answers_arguments(jobs[0].output.uri, train))
    except StepFailedError as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    folder = Path(train.output.folder)
    report = Report(
        stores=tuple(summarise_store(job.output.uri) for job in jobs),
        training=read_training(folder),
        text_alone=read_training(text_folder(train)),
        students=tuple(answering_students(train)),
        answers=read_answers(folder / ANSWERS_NAME),
        stages=tuple(steps.done),
        hardware=describe_hardware(),
        versions=package_versions(),
        date=datetime.now(UTC).isoformat(sep=" ", timespec="minutes"),
    )
    student = StudentView(folder)
    views = [StoreView(job.output.uri, job.teacher.model, student=student) for job in jobs]
    start = f"store=0&sequence={min(views[0].followed(), default=0)}"
    page = static_page(views, max_sequences=SEQUENCES_PER_STORE, top_k=16, start=start)
    num_bytes = write_report(report, page, args.report)
    summarise(console, report)
    console.print(f"\nreport: {args.report} ({num_bytes / 1e6:.1f} MB)", highlight=False)
    return _judge(console, report)


def text_folder(train: TrainConfig) -> Path:
    """Folder of the student that learns from the text alone."""
    return Path(f"{train.output.folder}-text")


def text_alone(train: TrainConfig) -> list[str]:
    """What the second run sets otherwise."""
    return ["loss.alpha=0", f"output.folder={text_folder(train)}"]


def training(train_file: Path, overrides: list[str]) -> list[str]:
    """The run's arguments. A student of other settings, as an earlier version of the demo left it, is
    replaced: the folders are the demo's own."""
    arguments = [str(train_file), *(word for text in overrides for word in ("--set", text))]
    config = load_config(str(train_file), overrides)
    try:
        saved = json.loads((Path(config.output.folder) / CONFIG_NAME).read_bytes())
    except FileNotFoundError:
        return arguments
    is_same = saved == json.loads(json.dumps(resolved(config)))
    return arguments if is_same else [*arguments, "--restart"]


def answering_students(train: TrainConfig) -> dict[str, str]:
    """Folder by name of the students that answer; one that begins with random weights says nothing."""
    start = {"before": train.student.model} if train.student.model is not None else {}
    return {**start, "text alone": str(text_folder(train)), "distilled": train.output.folder}


def answers_arguments(uri: str, train: TrainConfig) -> list[str]:
    folder = train.output.folder
    students = answering_students(train).values()
    return [uri, "--students", *students, "--followed", folder, "--out", str(Path(folder) / ANSWERS_NAME)]


def read_training(folder: Path) -> Training:
    """What the trainer wrote in `metrics.json` and `snapshots.npz` of its output folder."""
    metrics = json.loads((folder / METRICS_NAME).read_text())
    history = [entry for entry in metrics["history"] if "loss" in entry]
    return Training(
        steps=tuple(entry["step"] for entry in history),
        losses=tuple(entry["loss"] for entry in history),
        before=_evaluation(metrics["before"]),
        after=_evaluation(metrics["after"]),
        num_parameters=metrics["num_parameters"],
        seconds=metrics["train_seconds"],
        teacher=metrics["teacher"],
        curve=kl_curve(folder),
    )


def _evaluation(metrics: dict[str, float]) -> Evaluation:
    return Evaluation(
        metrics["kl"], metrics["cross_entropy"], metrics["top1_agreement"], metrics["accuracy"],
        metrics["calibration_error"],
    )  # fmt: skip


def kl_curve(folder: Path) -> tuple[tuple[int, float], ...]:
    """(step, mean KL in nats over the rows that a loss counts) of the sequences that were followed."""
    found = read_snapshots(folder)
    sums, num_rows = np.zeros(len(found.steps)), 0
    for one in found.sequences:
        store = LogitStore.open(one.store)
        sequence, spec = store[one.record_id, one.sample_index], store.manifest.labels
        counted = sequence.loss_mask_N[: one.num_rows]
        teacher = _distribution(sequence.rows.slice(0, one.num_rows), spec)[counted]
        num_rows += len(teacher)
        for place, taken in enumerate(one.snapshots):
            student = _distribution(taken.rows, spec)[counted]
            sums[place] += (np.exp(teacher) * np.where(np.isfinite(teacher), teacher - student, 0)).sum()
    return tuple(zip(found.steps, (sums / max(num_rows, 1)).tolist(), strict=True))


def _distribution(rows: LabelRows, spec: LabelSpec) -> np.ndarray:
    """float64 [N, K + 1]: log-probabilities of the stored entries and of all others, at T = 1."""
    tail_N1 = log_tail_mass(rows, spec, 1.0)[:, None]
    return np.concatenate([logprobs(rows, spec, 1.0), tail_N1], axis=1).astype(np.float64)


def summarise(console: Console, report: Report) -> None:
    """The same figures as the page's, for the terminal."""
    console.rule("[bold]summary")
    steps = Table("step", "seconds", box=None, padding=(0, 2))
    for stage in report.stages:
        steps.add_row(stage.name, f"{stage.seconds:.0f}")
    stores = Table("store", "sequences", "label rows", "B per row", "rejected", box=None, padding=(0, 2))
    for store in report.stores:
        stores.add_row(*_store_row(store))
    student = Table("held-out rows", "before", "text alone", "distilled", "teacher", box=None, padding=(0, 2))
    for row in figure_rows(report):
        student.add_row(*row)
    for table in (steps, stores, student):
        console.print(table, "")


def _store_row(store: StoreSummary) -> tuple[str, ...]:
    return (
        store.uri,
        f"{store.num_sequences:,}",
        f"{store.num_rows:,}",
        f"{store.bytes_per_row:.1f}",
        str(store.num_rejects),
    )


def _judge(console: Console, report: Report) -> int:
    problem, fall = lack_of_learning(report), kl_fall(report)
    if not problem:
        console.print(f"KL(teacher, student) fell by {fall:.0%}", style="green", highlight=False)
        return 0
    console.print(
        f"demo: {problem}; train longer (training.max_steps in configs/demo-train.toml)",
        style="red",
        markup=False,
        highlight=False,
    )
    return 1


def kl_fall(report: Report) -> float:
    """The share of KL(teacher, student) on held-out rows that the distilled student lost in its training."""
    return 1 - report.training.after.kl / report.training.before.kl


def lack_of_learning(report: Report) -> str:
    """Why the distilled student shows nothing; "" where its KL fell, and below that of the text alone."""
    fall, kl, alone_kl = kl_fall(report), report.training.after.kl, report.text_alone.after.kl
    if not fall > REQUIRED_KL_FALL:
        return f"KL(teacher, student) fell by {fall:.0%} only, not by more than {REQUIRED_KL_FALL:.0%}"
    if not kl < alone_kl:
        return f"KL(teacher, student) is {kl:.3g} nats, no lower than {alone_kl:.3g} on the text alone"
    return ""
