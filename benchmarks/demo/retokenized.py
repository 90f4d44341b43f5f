"""A student of another tokenizer family, trained on the teacher's labels and on the text alone, compared.

The demo's labels are mapped to the tokens of a SentencePiece model. Two students begin alike, with the
teacher's layers under a new embedding, and take equal steps over the same sequences: one learns the mapped
rows, the other the text alone (`loss.alpha = 0`). `penumbra train parity` then asks both for the demo's given
answers, which neither has met, in bits per byte, and asks the teacher about the answers that they write.
Every step is a public command in a process of its own, with the file `demo-retokenized-train.toml`; what is
there already is not made again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.demo.demo import StepFailedError, Steps
from benchmarks.demo.options import add_measuring
from benchmarks.demo.prompted import Student, students_of
from benchmarks.demo.retokenized_start import make_start
from benchmarks.report.results import Figure, Result, publish
from labeler.config.loading import load_job
from logitstore.common.config_file import ConfigError
from logitstore.common.console import Console
from logitstore.common.options import positive
from logitstore.retokenize.report import Report, read_report
from logitstore.store import LogitStore
from trainer.run.config import load_config

JOB_FILE, TRAIN_FILE = "demo-generate.toml", "demo-retokenized-train.toml"
MEASURES = ("bits_per_byte", "judge_bits_per_byte", "repetition")
NUM_QUESTIONS = 24
"""Number of questions: the first ones that have given answers; as many get answers written."""
NUM_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Written:
    """One student."""

    learned: Student
    gaps: dict[str, dict[str, Any]]
    """Its texts beside the teacher's, by MEASURES."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    add_measuring(parser)
    parser.add_argument(
        "--questions", type=Path, default=Path("benchmarks/demo_data/pairs.jsonl"), help="with given answers"
    )
    parser.add_argument(
        "--limit", type=positive, default=NUM_QUESTIONS, help=f"questions that are asked ({NUM_QUESTIONS})"
    )


def run(args: argparse.Namespace) -> int:
    job = load_job(str(args.configs / JOB_FILE))
    train_file = args.configs / TRAIN_FILE
    train = load_config(str(train_file))
    labels, start = train.data.stores[0].uri, train.student.model
    if start is None:
        raise ConfigError(f"{train_file} must name student.model, the folder of the student before it learns")
    console = Console()
    steps = Steps(console)
    folders = {"labels": Path(train.output.folder), "text alone": Path(f"{train.output.folder}-text")}
    try:
        steps.run("label", "label", "run", str(args.configs / JOB_FILE))
        make_start(Path(job.teacher.model), Path(start))
        mapping = ("--tokenizer", start, "--teacher-tokenizer", job.teacher.model)
        steps.run("map", "store", "retokenize", job.output.uri, labels, *mapping)
        steps.run("train: labels", "train", "run", str(train_file))
        alone = ("--set", "loss.alpha=0", "--set", f"output.folder={folders['text alone']}")
        steps.run("train: text alone", "train", "run", str(train_file), *alone)
        asked = ("--tasks", str(args.questions), "--limit", str(args.limit), "--max-tokens", str(NUM_TOKENS))
        gaps = {
            name: _gaps(steps, name, folder, job.teacher.model, (*asked, "--labels", labels))
            for name, folder in (("before", Path(start)), *folders.items())
        }
    except StepFailedError as error:
        console.print(f"retokenized: {error}", style="red", markup=False)
        return 1
    report = read_report(LogitStore.open(labels))
    if report is None:
        raise ConfigError(f"{labels} holds no finished mapping; remove the folder, and the command makes it")
    at_start, on_labels = students_of(folders["labels"])
    students = {
        "before": Written(at_start, gaps["before"]),
        "labels": Written(on_labels, gaps["labels"]),
        "text alone": Written(students_of(folders["text alone"])[1], gaps["text alone"]),
    }
    publish(result_of(students, report), args.out, quiet=args.quiet)
    return 0


def _gaps(
    steps: Steps, name: str, student: Path, teacher: str, options: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """What `penumbra train parity` finds of a student, by MEASURES. The teacher's answers, in the same folder
    for all students, are asked for once."""
    found: dict[str, dict[str, Any]] = {}
    for match in (("bits_per_byte",), ("judge_bits_per_byte", "--judge", teacher)):
        out = student.parent / f"parity-{match[0].replace('_', '-')}"
        both = ("--student", str(student), "--teacher", teacher, "--match", *match, "--out", str(out))
        steps.run(f"parity: {name}", "train", "parity", *both, *options)
        for task, gap in json.loads((out / "parity.json").read_text())["gaps"].items():
            found[task.rpartition(" ")[2].strip("()")] = gap
    return found


def result_of(students: dict[str, Written], report: Report) -> Result:
    """The table and its figures of the students before, on labels and on text alone."""
    rows, figures = [], []
    whats = (("kl", "nats"), ("agreement", ""), *zip(MEASURES, ("bits/B", "bits/B", ""), strict=True))
    for name, one in students.items():
        values = [one.gaps[measure]["student"] for measure in MEASURES]
        rows.append((name, one.learned.kl, one.learned.top1_agreement, *values))
        for (what, unit), value in zip(whats, rows[-1][1:], strict=True):
            figures.append(Figure.of(f"{what}_{name.replace(' ', '_')}", value, unit))
    gaps = students["labels"].gaps
    rows.append(("teacher", None, None, *(gaps[measure]["teacher"] for measure in MEASURES)))
    kept = report.num_kept / report.num_rows
    labels, alone = students["labels"].learned, students["text alone"].learned
    needed = [students[name].gaps["bits_per_byte"]["student"] for name in ("labels", "text alone")]
    return Result.of(
        "retokenized",
        meaning=f"After equal steps a student of another tokenizer is {labels.kl:.3g} nats from the "
        f"teacher's mapped rows on its labels and {alone.kl:.3g} on the text alone, and needs "
        f"{needed[0]:.3g} and {needed[1]:.3g} bits for a byte of given answers.",
        columns=(
            "student", "KL, nats", "top-1 agreement", "bits per byte of given answers",
            "teacher's bits per byte of its answers", "repetition in them",
        ),
        rows=rows,
        figures=[
            *figures,
            *(Figure.of(f"{one}_teacher", gaps[one]["teacher"], "bits/B") for one in MEASURES[:2]),
            Figure.of("kl_labels_over_text_alone", labels.kl / alone.kl, ""),
            Figure.of("bits_per_byte_labels_over_text_alone", needed[0] / needed[1], ""),
            Figure.of("rows_kept", kept, ""),
        ],
        notes=(
            f"KL(teacher's mapped rows || student) over {labels.num_rows:,} rows of "
            f"{labels.num_sequences} held-out records; {kept:.1%} of the label rows were kept.",
            f"Given answers to {gaps['bits_per_byte']['num_items']} questions that no student has met; "
            f"answers of their own are greedy, of at most {NUM_TOKENS} tokens.",
            "All three have the teacher's layers; embeddings of tokens that it lacks are means of its own.",
        ),
    )  # fmt: skip
