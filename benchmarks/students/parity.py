"""The demo's student beside its teacher on GSM8K, by lm-eval and by how likely both find the right answers.

`penumbra train parity` asks both the first questions as lm-eval's task does, and counts the bits per byte of
the right answers, which tells models apart that are too small to be right: also the student before it
learned, and the one that learned from the text alone. The demo must have run; lm-eval is the extra `parity`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.demo.demo import StepFailedError, Steps, answering_students
from benchmarks.demo.options import add_measuring
from benchmarks.report.results import Figure, Result, publish
from labeler.config.loading import load_job
from logitstore.common.config_file import ConfigError
from logitstore.common.console import Console
from logitstore.common.options import positive
from trainer.run.config import load_config

JOB_FILE, TRAIN_FILE = "demo-generate.toml", "demo-train.toml"
NUM_QUESTIONS = 50
TASK, LIKELIHOOD = "gsm8k", "bits_per_byte"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add_measuring(parser)
    parser.add_argument(
        "--questions", type=Path, required=True, metavar="FILE", help="GSM8K as JSON lines: question, answer"
    )
    parser.add_argument(
        "--limit", type=positive, default=NUM_QUESTIONS, help=f"questions that are asked ({NUM_QUESTIONS})"
    )


def run(args: argparse.Namespace) -> int:
    job = load_job(str(args.configs / JOB_FILE))
    train = load_config(str(args.configs / TRAIN_FILE))
    students = {name: Path(folder) for name, folder in answering_students(train).items()}
    for folder in students.values():
        if not folder.exists():
            raise ConfigError(f"{folder} is missing: the students are the demo's; run `make demo` first")
    labels = [word for store in train.data.stores for word in ("--labels", store.uri)]
    console = Console()
    steps = Steps(console)

    def compare(name: str, tasks: str, out: str, *options: str) -> dict[str, Any]:
        folder = Path(train.output.folder).parent / out
        both = ("--student", str(students[name]), "--teacher", job.teacher.model, "--out", str(folder))
        asked = ("--tasks", tasks, "--limit", str(args.limit), *options, *labels)
        steps.run(f"{tasks}: {name}", "train", "parity", *both, *asked)
        return json.loads((folder / "parity.json").read_bytes())

    try:
        likely = {
            name: compare(name, str(args.questions), "parity-bits", "--match", LIKELIHOOD)
            for name in students
        }
        answered = compare("distilled", f"{TASK}={args.questions}", "parity")
    except StepFailedError as error:
        console.print(f"parity: {error}", style="red", markup=False)
        return 1
    seconds = steps.done[-1].seconds
    publish(result_of(answered, likely, seconds), args.out, quiet=args.quiet)
    return 0


def result_of(answered: Mapping[str, Any], likely: Mapping[str, Mapping[str, Any]], seconds: float) -> Result:
    """The result of the record of lm-eval's task, and of the likelihoods' records by student."""
    rows, figures = [], []
    for task, gap in answered["gaps"].items():
        measure = task.partition("(")[2].rstrip(")")
        rows.append(_row(f"distilled: {measure}", gap))
        figures += _figures(measure.replace(", ", "_").replace("-", "_"), gap, "")
    for name, record in likely.items():
        (gap,) = record["gaps"].values()
        rows.append(_row(f"{name}: bits per byte of right answers", gap))
        figures += _figures(f"{LIKELIHOOD}_{name.replace(' ', '_')}", gap, "bits/B")
    one = next(iter(answered["gaps"].values()))
    needed = {name: next(iter(record["gaps"].values())) for name, record in likely.items()}
    cut = answered["num_cut_answers"]
    return Result.of(
        "parity",
        meaning=f"Of {one['num_items']} GSM8K questions the teacher answers {one['teacher']:.0%} and its "
        f"student {one['student']:.0%}; a byte of the right answers costs them "
        f"{needed['distilled']['teacher']:.3g} and {needed['distilled']['student']:.3g} bits.",
        columns=("student, measure", "teacher", "student", "gap", "95% from", "95% to"),
        rows=rows,
        figures=[
            *figures,
            Figure.of("num_questions", one["num_items"], ""),
            Figure.of("num_cut_answers_teacher", cut["teacher"], ""),
            Figure.of("num_cut_answers_student", cut["student"], ""),
            Figure.of("seconds", seconds, "s"),
        ],
        notes=(
            f"lm-eval's task {TASK}, its examples and its own limit of tokens; of {one['num_items']} answers "
            f"{cut['teacher']} of the teacher and {cut['student']} of the student were cut at that limit.",
            "Gaps are teacher less student, with a bootstrap interval over questions. Fewer bits are better.",
            "Models of this size hardly solve such questions: the first lines show the path, the others tell "
            "students apart.",
        ),
    )


def _row(name: str, gap: Mapping[str, Any]) -> tuple[Any, ...]:
    known = _known(gap)
    return (name, *(known.get(key) for key in ("teacher", "student", "gap", "low", "high")))


def _figures(name: str, gap: Mapping[str, Any], unit: str) -> list[Figure]:
    return [Figure.of(f"{name}_{key}", value, unit) for key, value in _known(gap).items()]


def _known(gap: Mapping[str, Any]) -> dict[str, float]:
    """Without the interval where all items show the same gap, which tells none."""
    names = ("teacher", "student", "gap", *(("low", "high") if gap["low"] < gap["high"] else ()))
    return {name: float(gap[name]) for name in names}
