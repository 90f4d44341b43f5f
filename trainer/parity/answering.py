"""What teacher and student say to the same questions, and the scores of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from logitstore.common.config_file import ConfigError
from logitstore.exchange.chat_text import reasoning_apart
from trainer.parity.contamination import Contamination
from trainer.parity.figures.scoring import score_of
from trainer.parity.harness import HarnessTask, score
from trainer.parity.models.answer_book import AnswerBook
from trainer.parity.models.judging import judged
from trainer.parity.models.model import AnsweringModel
from trainer.parity.options import ParityOptions
from trainer.parity.records import MAX_TOKENS, Answer, Item, Request, Scored, Scores
from trainer.parity.stored import is_store, stored_answers


@dataclass(frozen=True, slots=True)
class Work:
    """What both models are asked, after what is contaminated was left out."""

    files: Mapping[str, Sequence[Item]]
    harness: Sequence[tuple[HarnessTask, Sequence[str]]]
    """With the documents to ask."""
    emptied: Sequence[str]
    """Files and tasks of which nothing is left to ask; they are in neither of the above."""
    contamination: Contamination | None


@dataclass(frozen=True, slots=True)
class Said:
    """By one of the two."""

    answers: Mapping[str, Mapping[str, Answer]]
    """By file and item, without reasoning, as a store tells them."""
    harness: Mapping[str, Scores]
    """By "task (metric)"."""
    num_cut_prompts: int
    num_cut_answers: int


def teacher_said(options: ParityOptions, work: Work, book: AnswerBook) -> Said:
    """From its model, or its store, which may lack some. Raises ConfigError where it has none at all."""
    if not is_store(options.teacher):
        return model_said(options, options.teacher, "teacher", work, book)
    found: dict[str, dict[str, Answer]] = {}
    for path, items in work.files.items():
        found[path] = stored_answers(options.teacher, items)
        if not found[path]:
            raise ConfigError(
                f"--teacher {options.teacher} has an answer to none of the {len(items)} questions of {path}; "
                "give the store that was labeled from them, or the teacher's model"
            )
        if len(found[path]) < len(items) and not options.quiet:
            print(
                f"parity: {len(items) - len(found[path])} of {len(items)} questions of {path} have no answer "
                f"in {options.teacher} and are left out",
                file=sys.stderr,
            )
    num_cut = sum(answer.is_cut for answers in found.values() for answer in answers.values())
    return Said(found, {}, 0, num_cut)


def model_said(options: ParityOptions, name: str, role: str, work: Work, book: AnswerBook) -> Said:
    """From a model, which is loaded for it and let go."""
    model = AnsweringModel(
        name, book, option=f"--{role}", batch_size=options.batch_size, tell=_tell(options, role)
    )
    length = options.max_tokens or MAX_TOKENS
    answers: dict[str, dict[str, Answer]] = {}
    for path, items in work.files.items():
        requests = [_request(model, item, length) for item in items]
        answers[path] = {
            item.item_id: replace(answer, text=reasoning_apart(request.prompt, answer.text)[1])
            for item, request, answer in zip(items, requests, model.answers(requests), strict=True)
        }
    scores: dict[str, Scores] = {}
    is_chat = model.tokenizer.chat_template is not None
    for task, items in work.harness:
        found = score(task, model, items=items, chat=is_chat, max_tokens=options.max_tokens)
        scores |= {f"{task.name} ({metric})": scored for metric, scored in found.items()}
    model.close()
    return Said(answers, scores, model.num_cut_prompts, model.num_cut_answers)


def scores_of(
    options: ParityOptions,
    work: Work,
    book: AnswerBook,
    pattern: re.Pattern[str] | None,
    teacher: Said,
    student: Said,
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """The teacher's and the student's, by file or "task (metric)". A judge is loaded once, for both."""
    scores = (dict(teacher.harness), dict(student.harness))
    asked = [
        (own, path, [(item, known[item.item_id]) for item in items if item.item_id in known])
        for own, said in zip(scores, (teacher, student), strict=True)
        for path, items in work.files.items()
        if (known := said.answers[path])
    ]
    triples = [(item.question, item.reference, answer.text) for _, _, both in asked for item, answer in both]
    if options.judge is None:
        values = [score_of(options.match, output, wanted, pattern) for _, wanted, output in triples]
    else:
        judge = AnsweringModel(
            options.judge, book, option="--judge", batch_size=options.batch_size, tell=_tell(options, "judge")
        )
        values = judged(judge, triples)
        judge.close()
        if judge.num_cut_prompts and not options.quiet:
            print(
                f"parity: judge: the beginning of {judge.num_cut_prompts:,} questions was left out, since "
                "they are too long for it",
                file=sys.stderr,
            )
    left = iter(values)
    for own, path, both in asked:
        own[path] = Scores([_scored(item, answer, next(left)) for item, answer in both])
    return scores


def _request(model: AnsweringModel, item: Item, max_tokens: int) -> Request:
    if model.tokenizer.chat_template is None:
        text = "\n\n".join(message["content"] for message in item.messages)
        return Request(text, is_chat=False, until=(), max_tokens=max_tokens)
    text = model.tokenizer.apply_chat_template(
        [dict(message) for message in item.messages], tokenize=False, add_generation_prompt=True
    )
    return Request(text, is_chat=True, until=(), max_tokens=max_tokens)


def _scored(item: Item, answer: Answer, value: float) -> Scored:
    return Scored(item.item_id, item.question, item.reference, answer.text, value, answer.confidence)


def _tell(options: ParityOptions, role: str) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        if not options.quiet:
            print(f"parity: {role}: {done:,} of {total:,} answered", file=sys.stderr)

    return tell
