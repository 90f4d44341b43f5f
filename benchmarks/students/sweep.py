"""A sweep of sixteen students of one store, killed in the middle, and what it says of their settings.

`penumbra train sweep` trains the demo's student at two temperatures, two shares of the labels in the loss,
two K and two seeds. Half of the way it is killed (SIGKILL) while a run is at work, and given again: what was
finished must be skipped and stand as it was. Given a third time it must train nothing and say the same. The
run that was killed is trained once more by itself and compared. Labels and student are the demo's and are
made where they are missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.demo.demo import StepFailedError, Steps
from benchmarks.demo.options import add_measuring
from benchmarks.report.results import Figure, Result, publish
from labeler.config.loading import load_job
from logitstore.common.config_file import ConfigError
from logitstore.common.console import Console
from logitstore.processes.with_parent import ending_with_this
from trainer.run.config import load_config
from trainer.sweep.command import RECORD_NAME
from trainer.sweep.grid import SEED

JOB_FILES, TRAIN_FILE = ("demo-generate.toml", "demo-score.toml"), "demo-train.toml"
OVER = ("loss.temperature=1,2", "loss.alpha=0.5,0.9", "data.top_k=16,64")
NUM_SEEDS = 2
NUM_STEPS, JOBS = 10, 2
"""Half of the demo's steps, two runs side by side."""
FIGURES = (("kl", "nats"), ("cross_entropy", "nats"), ("top1_agreement", ""), ("calibration_error", ""))
POLL_SEC = 0.1


@dataclass(frozen=True, slots=True)
class Interruption:
    """What a sweep that was killed kept and lost."""

    num_before: int
    """Runs that were finished when it was killed."""
    num_skipped: int
    """How many of those were not trained again."""
    seconds: float
    """Time of both starts, until all runs were finished."""
    killed_run: str
    kl_difference: float
    """Between the killed run, trained again by the sweep, and the same settings trained by themselves."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add_measuring(parser)


def run(args: argparse.Namespace) -> int:
    job_files = [args.configs / name for name in JOB_FILES]
    jobs = [load_job(str(file)) for file in job_files]
    train_file = args.configs / TRAIN_FILE
    train = load_config(str(train_file))
    if train.student.model is None:
        raise ConfigError(f"{train_file} must name student.model, the folder of the student before it learns")
    console = Console()
    steps = Steps(console)
    folder = Path(train.output.folder).parent / "sweep"
    try:
        for file, job in zip(job_files, jobs, strict=True):
            steps.run(f"label: {job.labels.mode}", "label", "run", str(file))
        steps.run("student", "bench", "student", "--out", train.student.model)
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier measurement
        interruption = interrupted_sweep(steps, train_file, folder)
    except StepFailedError as error:
        console.print(f"sweep: {error}", style="red", markup=False)
        return 1
    publish(result_of(read_runs(folder), interruption, _said(folder)), args.out, quiet=args.quiet)
    return 0


def interrupted_sweep(steps: Steps, train_file: Path, folder: Path) -> Interruption:
    """The sweep, killed once half of its runs have ended. Raises StepFailedError if it loses anything."""
    seeds = ",".join(map(str, range(NUM_SEEDS)))
    command = _command(train_file, folder, [*OVER, f"{SEED}={seeds}"])
    started = time.perf_counter()
    killed_run = _kill_in_the_middle(command, folder)
    before = read_runs(folder)
    steps.run("sweep: again", *command)
    seconds = time.perf_counter() - started
    runs = read_runs(folder)
    kept = [name for name in before if runs[name]["state"] == "finished before"]
    changed = [name for name, one in before.items() if runs[name]["after"] != one["after"]]
    steps.run("sweep: a third time", *command)
    third = read_runs(folder)
    trained = [name for name, one in third.items() if one["state"] != "finished before"]
    changed += [name for name, one in third.items() if one["after"] != runs[name]["after"]]
    if trained or changed or len(kept) < len(before):
        raise StepFailedError(
            f"the sweep trained {len(before) - len(kept) + len(trained)} finished runs again and changed "
            f"{len(changed)}"
        )
    settings = runs[killed_run]["settings"]
    alone = Path(f"{folder}-alone")
    shutil.rmtree(alone, ignore_errors=True)
    only = [f"{name}={value}" for name, value in settings.items()]
    steps.run("the killed run by itself", *_command(train_file, alone, only))
    kl = read_runs(alone)[killed_run]["after"]["kl"]
    difference = abs(kl - runs[killed_run]["after"]["kl"])
    return Interruption(len(before), len(kept), seconds, killed_run, difference)


def _command(train_file: Path, folder: Path, over: Sequence[str]) -> list[str]:
    command = ["train", "sweep", str(train_file), "--out", str(folder), "--jobs", str(JOBS)]
    command += ["--set", f"training.max_steps={NUM_STEPS}", "--set", "evaluation.snapshots=0"]
    return [*command, *(word for axis in over for word in ("--over", axis))]


def _kill_in_the_middle(command: Sequence[str], folder: Path) -> str:
    """Start the sweep, and kill it while runs of its second half are at work; the first one's name."""
    with subprocess.Popen(ending_with_this(["logitstore.common.penumbra", *command])) as process:
        try:
            while process.poll() is None:
                ended = read_runs(folder)
                begun = [path.name.removesuffix(".json") for path in (folder / "runs").glob("*.json")]
                at_work = [name for name in begun if name not in ended]
                if at_work and len(ended) >= num_runs() // 2:
                    taken = statistics.median(one["train_seconds"] for one in ended.values())
                    time.sleep(taken / 2)
                    return at_work[0]
                time.sleep(POLL_SEC)
        finally:
            process.kill()
    raise StepFailedError(f"the sweep ended with status {process.returncode} before it was killed")


def num_runs() -> int:
    number = NUM_SEEDS
    for over in OVER:
        number *= len(over.split(","))
    return number


def read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs that have ended, by name; none yet where the sweep has written nothing.

    Raises StepFailedError for one that failed.
    """
    try:
        runs = json.loads((folder / RECORD_NAME).read_bytes())["runs"]
    except FileNotFoundError:
        return {}
    for one in runs:
        if one["state"] == "failed":
            raise StepFailedError(f"the run {one['name']} failed: {one['error']}")
    return {one["name"]: one for one in runs}


def _said(folder: Path) -> list[str]:
    return json.loads((folder / RECORD_NAME).read_bytes())["recommendation"]


def result_of(
    runs: Mapping[str, Mapping[str, Any]], interruption: Interruption, recommendation: Sequence[str]
) -> Result:
    """A line and a figure for each combination of settings, with its seeds as repetitions."""
    by_settings: dict[tuple[Any, ...], list[Mapping[str, float]]] = defaultdict(list)
    for one in runs.values():
        settings = one["settings"]
        key = tuple(settings[over.partition("=")[0]] for over in OVER)
        by_settings[key].append(one["after"])
    rows, figures = [], []
    for (temperature, alpha, top_k), seeds in by_settings.items():
        name = f"t{temperature}_alpha{round(100 * alpha)}_k{top_k}"
        own = [Figure.of(f"{what}_{name}", [one[what] for one in seeds], unit) for what, unit in FIGURES]
        figures += own
        rows.append(
            (f"T={temperature}, alpha={alpha}, K={top_k}", *(one.value for one in own), own[0].spread)
        )
    rows.sort(key=lambda row: row[1])
    first = interruption
    return Result.of(
        "sweep",
        meaning=f"{len(runs)} students of one store took {first.seconds / 60:.1f} min, with one SIGKILL on "
        f"the way; {first.num_skipped} of {first.num_before} finished runs were skipped.",
        columns=(
            "settings", "KL, nats", "cross-entropy, nats", "top-1 agreement", "calibration error",
            "KL between seeds, nats",
        ),
        rows=rows,
        figures=[
            *figures,
            Figure.of("seconds", first.seconds, "s"),
            Figure.of("train_seconds", [one["train_seconds"] for one in runs.values()], "s"),
            Figure.of("num_runs", len(runs), ""),
            Figure.of("num_finished_before_kill", first.num_before, ""),
            Figure.of("num_skipped", first.num_skipped, ""),
            Figure.of("killed_run_kl_difference", first.kl_difference, "nats"),
        ],
        notes=(
            *(f"The sweep's own words: {sentence}." for sentence in recommendation),
            f"Of held-out records, at temperature 1; the median of {NUM_SEEDS} seeds.",
            f"The run at work when the sweep was killed ({first.killed_run}) was trained again by the sweep, "
            "and once more by itself.",
        ),
    )  # fmt: skip
