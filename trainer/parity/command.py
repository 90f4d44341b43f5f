"""`penumbra train parity`: check the items, let the teacher answer, then the student, compare."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from logitstore.common.config_file import ConfigError
from logitstore.common.hub import check_model_name
from trainer.parity.answer_book import AnswerBook
from trainer.parity.contamination import NUM_WORDS, Contamination, contamination_of, training_stores
from trainer.parity.gap import ENOUGH, Gap, Routing, gap_of, routing_of
from trainer.parity.harness import HarnessTask, load_tasks, score
from trainer.parity.items import read_items
from trainer.parity.judging import judged
from trainer.parity.model import AnsweringModel
from trainer.parity.pictures import draw_routing
from trainer.parity.records import Answer, Item, MatchKind, Pair, Request, Scored
from trainer.parity.scoring import check_reference, compiled, score_of
from trainer.parity.stored import is_store, stored_answers

ScoresByName = dict[str, list[Scored]]
"""By task, or by "task (metric)"."""


@dataclass(frozen=True, slots=True)
class ParityOptions:
    """What the command line says."""

    student: str
    teacher: str
    tasks: tuple[str, ...]
    out: Path
    labels: tuple[str, ...]
    unchecked: bool
    match: MatchKind
    regex: str | None
    judge: str | None
    prompt_field: str | None
    answer_field: str | None
    limit: int | None
    max_tokens: int
    num_fewshot: int | None
    batch_size: int
    seed: int
    quiet: bool


@dataclass(frozen=True, slots=True)
class Work:
    """What both models are asked, after what is contaminated was left out."""

    files: Mapping[str, Sequence[Item]]
    harness: Sequence[tuple[HarnessTask, Sequence[str]]]
    """With the documents to ask."""
    contamination: Contamination | None


def parity(options: ParityOptions) -> dict[str, Any]:
    """Compare the two, and write what came of it; the content of `parity.json`.

    Only one model is in memory at a time. Given again, answers that are in `answers.jsonl` are not asked for.
    Raises ConfigError before a model is loaded.
    """
    pattern = compiled(options.regex, options.match)
    if (options.judge is not None) != (options.match == "judge"):
        raise ConfigError("--match judge needs --judge MODEL, and no other way of matching takes one")
    work = _work(options, pattern)
    options.out.mkdir(parents=True, exist_ok=True)
    book = AnswerBook(options.out / "answers.jsonl")
    try:
        teacher, cut_teacher = _teacher_scores(options, work, book, pattern)
        student, cut_student = _model_scores(options, options.student, "student", work, book, pattern)
    finally:
        book.close()
    return _written(options, work, teacher, student, {"teacher": cut_teacher, "student": cut_student})


def _work(options: ParityOptions, pattern: re.Pattern[str] | None) -> Work:
    check_model_name(options.student, revision=None, setting="--student")
    if not is_store(options.teacher):
        check_model_name(options.teacher, revision=None, setting="--teacher")
    paths = [task for task in options.tasks if "=" not in task and Path(task).exists()]
    names = [task for task in options.tasks if task not in paths]
    files = {
        path: read_items(path, options.prompt_field, options.answer_field, options.limit) for path in paths
    }
    for path, items in files.items():
        for item in items:
            check_reference(options.match, item.reference, pattern, f"{path}, {item.item_id}")
    if names and is_store(options.teacher):
        raise ConfigError(
            f"--tasks {names[0]} is a task of lm-eval, and a store answers its own prompts alone; give the "
            " teacher's model, or a file of questions that the store has answers to"
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
    return Work(
        {
            path: [one for one in items if f"{path}\t{one.item_id}" not in met]
            for path, items in files.items()
        },
        [(task, [one for one in task.questions if f"{task.name}\t{one}" not in met]) for task in harness],
        found,
    )


def _teacher_scores(
    options: ParityOptions, work: Work, book: AnswerBook, pattern: re.Pattern[str] | None
) -> tuple[ScoresByName, int]:
    if not is_store(options.teacher):
        return _model_scores(options, options.teacher, "teacher", work, book, pattern)
    scores: ScoresByName = {}
    for path, items in work.files.items():
        answers = stored_answers(options.teacher, items)
        if not answers:
            raise ConfigError(
                f"--teacher {options.teacher} has an answer to none of the {len(items)} questions of {path}; "
                "give the store that was labeled from them, or the teacher's model"
            )
        if len(answers) < len(items) and not options.quiet:
            print(
                f"parity: {len(items) - len(answers)} of {len(items)} questions of {path} have no answer in "
                f"{options.teacher} and are left out",
                file=sys.stderr,
            )
        known = [item for item in items if item.item_id in answers]
        scores[path] = _scored(options, known, [answers[one.item_id] for one in known], book, pattern)
    return scores, 0


def _model_scores(
    options: ParityOptions,
    name: str,
    role: str,
    work: Work,
    book: AnswerBook,
    pattern: re.Pattern[str] | None,
) -> tuple[ScoresByName, int]:
    """Scores of a model that is loaded for it, and how many prompts were too long for it."""
    model = AnsweringModel(
        name, book, option=f"--{role}", batch_size=options.batch_size, tell=_tell(options, role)
    )
    is_chat = model.tokenizer.chat_template is not None
    answers = {
        path: model.answers([_request(model, item, options.max_tokens) for item in items])
        for path, items in work.files.items()
    }
    scores: ScoresByName = {}
    for task, items in work.harness:
        if items:
            found = score(task, model, items=items, chat=is_chat, max_tokens=options.max_tokens)
            scores |= {f"{task.name} ({metric})": scored for metric, scored in found.items()}
    model.close()
    for path, items in work.files.items():
        scores[path] = _scored(options, items, answers[path], book, pattern)
    return scores, model.num_cut_prompts


def _request(model: AnsweringModel, item: Item, max_tokens: int) -> Request:
    if model.tokenizer.chat_template is None:
        text = "\n\n".join(message["content"] for message in item.messages)
        return Request(text, is_chat=False, until=(), max_tokens=max_tokens)
    text = model.tokenizer.apply_chat_template(
        [dict(message) for message in item.messages], tokenize=False, add_generation_prompt=True
    )
    return Request(text, is_chat=True, until=(), max_tokens=max_tokens)


def _scored(
    options: ParityOptions,
    items: Sequence[Item],
    answers: Sequence[Answer],
    book: AnswerBook,
    pattern: re.Pattern[str] | None,
) -> list[Scored]:
    both = list(zip(items, answers, strict=True))
    if options.judge is not None:
        judge = AnsweringModel(
            options.judge,
            book,
            option="--judge",
            batch_size=options.batch_size,
            tell=_tell(options, "judge"),
        )
        scores = judged(judge, [(item.question, item.reference, answer.text) for item, answer in both])
        judge.close()
    else:
        scores = [score_of(options.match, answer.text, item.reference, pattern) for item, answer in both]
    return [
        Scored(item.item_id, item.question, item.reference, answer.text, value, answer.confidence)
        for (item, answer), value in zip(both, scores, strict=True)
    ]


def _tell(options: ParityOptions, role: str) -> Any:
    def tell(done: int, total: int) -> None:
        if not options.quiet:
            print(f"parity: {role}: {done:,} of {total:,} answered", file=sys.stderr)

    return tell


def _written(
    options: ParityOptions,
    work: Work,
    teacher: ScoresByName,
    student: ScoresByName,
    num_cut_prompts: Mapping[str, int],
) -> dict[str, Any]:
    pairs = {name: _paired(scores, student[name]) for name, scores in teacher.items()}
    gaps = {name: gap_of(found, options.seed) for name, found in pairs.items() if found}
    curves = {name: curve for name, found in pairs.items() if found and (curve := routing_of(found))}
    with (options.out / "items.jsonl").open("w", encoding="utf-8") as file:
        for name, found in pairs.items():
            file.writelines(json.dumps(one.to_dict(name), ensure_ascii=False) + "\n" for one in found)
    if curves:
        draw_routing(options.out / "routing.png", curves)
    found = work.contamination
    record = {
        "student": options.student,
        "teacher": options.teacher,
        "seed": options.seed,
        "contamination": None
        if found is None
        else {"stores": list(found.stores), "num_prompts": found.num_prompts, "left_out": dict(found.met)},
        "num_cut_prompts": dict(num_cut_prompts),
        "gaps": {name: asdict(gap) for name, gap in gaps.items()},
        "routing": {name: curve.to_dict() for name, curve in curves.items()},
    }
    (options.out / "parity.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _paired(teacher: Sequence[Scored], student: Sequence[Scored]) -> list[Pair]:
    own = {one.item_id: one for one in student}
    return [Pair(one.item_id, one.question, one.reference, one, own[one.item_id]) for one in teacher]


def in_words(record: Mapping[str, Any], out: Path) -> str:
    """What the command prints."""
    checked = record["contamination"]
    lines = ["contamination was not checked (--unchecked)"]
    if checked is not None:
        lines = [
            f"contamination: {len(checked['left_out']):,} items share {NUM_WORDS} words in a row with one of "
            f"{checked['num_prompts']:,} training prompts and are left out"
        ]
    lines += [
        f"{role}: the beginning of {count:,} prompts was left out, since they are too long for it"
        for role, count in record["num_cut_prompts"].items()
        if count
    ]
    for name, fields in record["gaps"].items():
        gap = Gap(**fields)
        lines.append(
            f"{name}: {gap.num_items:,} items; teacher {gap.teacher:.4f}, student {gap.student:.4f}, gap "
            f"{gap.gap:+.4f} (95% interval {gap.low:+.4f} to {gap.high:+.4f})"
        )
        if name in record["routing"]:
            lines.append("  " + _routing_in_words(Routing(**record["routing"][name])))
    lines.append(f"each item: {out}/items.jsonl; all figures: {out}/parity.json")
    if record["routing"]:
        lines.append(f"routing: {out}/routing.png")
    return "\n".join(lines)


def _routing_in_words(routing: Routing) -> str:
    if routing.quality[0] >= routing.quality[-1]:
        return "routing: the student alone scores no less than the teacher"
    place = routing.enough()
    assert place is not None, "all requests to the teacher reach all of its score"
    threshold = routing.threshold[place]
    below = "" if threshold is None else f", those with a confidence below {threshold:.3f},"
    return (
        f"routing: {routing.share[place]:.0%} of requests to the teacher{below} reach {ENOUGH:.0%} of its "
        "score (threshold chosen on these items)"
    )
