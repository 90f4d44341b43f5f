"""`penumbra train parity`: check the items, let the teacher answer, then the student, compare."""

from __future__ import annotations

import os
import re
from typing import Any

from logitstore.common.config_file import ConfigError
from logitstore.inputs.listing import form_of
from logitstore.manifest.folders import refuse_in_store
from logitstore.models.hub import check_model_name
from trainer.parity.answering import Work, compared, model_said, teacher_said
from trainer.parity.contamination import NUM_WORDS, contamination_of, training_stores
from trainer.parity.figures.report import write_results
from trainer.parity.figures.scoring import check_reference, compiled
from trainer.parity.harness import load_tasks
from trainer.parity.items import read_items
from trainer.parity.models.answer_book import AnswerBook
from trainer.parity.options import ParityOptions
from trainer.parity.records import JUDGED
from trainer.parity.stored import is_store
from trainer.run.only_run import only_run


def parity(options: ParityOptions) -> dict[str, Any]:
    """Compare the two, and write what came of it; the content of `parity.json`.

    Only one model is in memory at a time. Given again, answers that are in `answers.jsonl` are not asked for.
    Raises ConfigError, for what can be known by then before a model is loaded, and
    RunBusyError while another process writes into the folder.
    """
    pattern = compiled(options.regex, options.match)
    _check_options(options)
    work = _work(options, pattern)
    with only_run(options.out, "--out"):
        book = AnswerBook(options.out / "answers.jsonl")
        try:
            teacher = teacher_said(options, work, book)
            student = model_said(options, options.student, "student", work, book)
            found = compared(options, work, book, pattern, teacher, student)
        finally:
            book.close()
        return write_results(options, work, teacher, student, found)


def _check_options(options: ParityOptions) -> None:
    """Raises ConfigError for what does not go together or names nothing, before any file is read."""
    if (options.judge is not None) != (options.match in JUDGED):
        raise ConfigError(
            f"--match {' and --match '.join(JUDGED)} need --judge MODEL, and no other way of matching takes "
            "one"
        )
    if options.match == "bits_per_byte" and is_store(options.teacher):
        raise ConfigError(
            f"--match bits_per_byte asks the teacher how likely it finds right answers, and "
            f"{options.teacher} is a store, which has its own answers alone; give its model"
        )
    refuse_in_store(options.out, "--out")
    check_model_name(options.student, revision=None, setting="--student")
    if not is_store(options.teacher):
        check_model_name(options.teacher, revision=None, setting="--teacher")
    if options.judge is not None:
        check_model_name(options.judge, revision=None, setting="--judge")
    if not options.tasks:
        raise ConfigError("--tasks names nothing; give files of questions, or tasks of lm-eval")


def _check_file(task: str) -> None:
    """Raises ConfigError for a file that is not here, as FILE or NAME=FILE: lm-eval, which is asked next, may
    not be installed, and would not know it either."""
    file = task.partition("=")[2] or (task if form_of(task) is not None else "")
    if file and not os.path.exists(file):
        raise ConfigError(f"--tasks {task}: {file!r} is no file here; correct the path")


def _work(options: ParityOptions, pattern: re.Pattern[str] | None) -> Work:
    paths = [task for task in options.tasks if "=" not in task and os.path.exists(task)]
    names = [task for task in options.tasks if task not in paths]
    for name in names:
        _check_file(name)
    fields, needs_answer = (
        (options.prompt_field, options.answer_field),
        options.match != "judge_bits_per_byte",
    )
    files = {path: read_items(path, *fields, options.limit, needs_answer=needs_answer) for path in paths}
    for path, items in files.items():
        for item in items:
            check_reference(options.match, item.reference, pattern, f"{path}, {item.item_id}")
    if names and is_store(options.teacher):
        raise ConfigError(
            f"--tasks {names[0]} is a task of lm-eval, and a store answers its own prompts alone; give the "
            "teacher's model, or a file of questions that the store has answers to"
        )
    stores = () if options.unchecked else training_stores(options.student, options.labels)
    harness = load_tasks(names, limit=options.limit, num_fewshot=options.num_fewshot) if names else []
    questions = {f"{path}\t{item.item_id}": (item.asked,) for path, items in files.items() for item in items}
    for task in harness:
        questions |= {
            f"{task.name}\t{item}": (text, task.bare[item]) for item, text in task.questions.items()
        }
    found = None if options.unchecked else contamination_of(questions, stores, options.student)
    met = {} if found is None else found.met
    if len(met) == len(questions):
        raise ConfigError(
            f"all {len(questions)} items share {NUM_WORDS} words in a row with the student's prompts; "
            "give questions that it has not met, or --unchecked"
        )
    left = {
        path: [one for one in items if f"{path}\t{one.item_id}" not in met] for path, items in files.items()
    }
    asked = [(task, [one for one in task.questions if f"{task.name}\t{one}" not in met]) for task in harness]
    emptied = [path for path, items in left.items() if not items]
    return Work(
        {path: items for path, items in left.items() if items},
        [(task, items) for task, items in asked if items],
        [*emptied, *(task.name for task, items in asked if not items)],
        found,
    )
