"""What teacher and student say to the same questions, and the scores of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from logitstore.common.config_file import ConfigError
from logitstore.exchange.chat_text import reasoning_apart
from trainer.parity.contamination import Contamination
from trainer.parity.figures.repetition import repetition
from trainer.parity.figures.scoring import score_of
from trainer.parity.harness import HarnessTask, score
from trainer.parity.models.answer_book import AnswerBook
from trainer.parity.models.judging import judged
from trainer.parity.models.likelihood import bits_per_byte, num_bytes, num_changed, prompt_of
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
    scores: Mapping[str, Scores]
    """By "task (metric)": those that need the model itself and no comparing of answers."""
    num_cut_prompts: int
    num_cut_answers: int
    num_changed_texts: int = 0
    """Texts whose bits were counted and of which the model's tokenizer drops or changes parts."""

    @property
    def num_empty_answers(self) -> int:
        return sum(not answer.text.strip() for found in self.answers.values() for answer in found.values())


@dataclass(frozen=True, slots=True)
class Compared:
    """The scores of both, by file or "task (metric)"."""

    teacher: Mapping[str, Scores]
    student: Mapping[str, Scores]
    num_changed_texts: Mapping[str, int]
    """By the role of the model that found texts likely or not; see `Said`."""


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
    answers: dict[str, dict[str, Answer]] = {}
    scores: dict[str, Scores] = {}
    num_changed_texts = 0
    for path, items in work.files.items():
        if options.match == "bits_per_byte":
            told = [(item, item.reference) for item in items]
            values = bits_per_byte(model, told)
            scores[f"{path} (bits_per_byte)"] = _of_bytes([(*one, "", None) for one in told], values)
            num_changed_texts += num_changed(model, [text for _, text in told])
        else:
            answers[path] = _answers(model, items, options.max_tokens or MAX_TOKENS)
    is_chat = model.tokenizer.chat_template is not None
    for task, items in work.harness:
        found = score(task, model, items=items, chat=is_chat, max_tokens=options.max_tokens)
        scores |= {f"{task.name} ({metric})": scored for metric, scored in found.items()}
    model.close()
    return Said(answers, scores, model.num_cut_prompts, model.num_cut_answers, num_changed_texts)


def _answers(model: AnsweringModel, items: Sequence[Item], max_tokens: int) -> dict[str, Answer]:
    """By item, without reasoning."""
    is_chat = model.tokenizer.chat_template is not None
    requests = [Request(prompt_of(model, item), is_chat, (), max_tokens) for item in items]
    return {
        item.item_id: replace(answer, text=reasoning_apart(request.prompt, answer.text)[1])
        for item, request, answer in zip(items, requests, model.answers(requests), strict=True)
    }


def compared(
    options: ParityOptions,
    work: Work,
    book: AnswerBook,
    pattern: re.Pattern[str] | None,
    teacher: Said,
    student: Said,
) -> Compared:
    """Scores of what both said. A judge is loaded once, for both."""
    scores = (dict(teacher.scores), dict(student.scores))
    changed = {"teacher": teacher.num_changed_texts, "student": student.num_changed_texts}
    asked = [
        _Asked(own, path, [(item, known[item.item_id]) for item in items if item.item_id in known])
        for own, said in zip(scores, (teacher, student), strict=True)
        for path, items in work.files.items()
        if (known := said.answers.get(path))
    ]
    if options.judge is None:
        for one in asked:
            values = [
                score_of(options.match, answer.text, item.reference, pattern) for item, answer in one.both
            ]
            one.own[one.path] = _scores(one, values)
    else:
        judge = AnsweringModel(
            options.judge, book, option="--judge", batch_size=options.batch_size, tell=_tell(options, "judge")
        )
        if options.match == "judge":
            _grade(judge, asked)
        else:
            changed["judge"] = _weigh(judge, asked)
        judge.close()
        if judge.num_cut_prompts and not options.quiet:
            print(
                f"parity: judge: the beginning of {judge.num_cut_prompts:,} questions was left out, since "
                "they are too long for it",
                file=sys.stderr,
            )
    return Compared(*scores, changed)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A file's questions and one model's answers."""

    own: dict[str, Scores]
    """Where the model's scores go."""
    path: str
    both: Sequence[tuple[Item, Answer]]


def _grade(judge: AnsweringModel, asked: Sequence[_Asked]) -> None:
    triples = [(item.question, item.reference, answer.text) for one in asked for item, answer in one.both]
    left = iter(judged(judge, triples))
    for one in asked:
        one.own[one.path] = _scores(one, [next(left) for _ in one.both])


def _weigh(judge: AnsweringModel, asked: Sequence[_Asked]) -> int:
    """What the judge makes of each text that is not empty, and how often the text repeats itself, which a
    model finds likely; how many texts the judge's tokenizer changes."""
    told = [[(item, answer) for item, answer in one.both if answer.text.strip()] for one in asked]
    pairs = [(item, answer.text) for both in told for item, answer in both]
    left = iter(bits_per_byte(judge, pairs))
    for one, both in zip(asked, told, strict=True):
        rows = [(item, answer.text, answer.text, answer.confidence) for item, answer in both]
        one.own[f"{one.path} (judge_bits_per_byte)"] = _of_bytes(rows, [next(left) for _ in both])
        repeated = [
            _scored(item, replace(answer, confidence=None), repetition(answer.text)) for item, answer in both
        ]
        one.own[f"{one.path} (repetition)"] = Scores(repeated, higher_is_better=False)
    return num_changed(judge, [text for _, text in pairs])


def _scores(one: _Asked, values: Sequence[float]) -> Scores:
    return Scores(
        [_scored(item, answer, value) for (item, answer), value in zip(one.both, values, strict=True)]
    )


def _of_bytes(rows: Sequence[tuple[Item, str, str, float | None]], values: Sequence[float]) -> Scores:
    """Scores of (item, text whose bits were counted, output, confidence) and the bits per byte."""
    return Scores(
        [
            Scored(item.item_id, item.question, item.reference, output, value, sure, weight=num_bytes(text))
            for (item, text, output, sure), value in zip(rows, values, strict=True)
        ],
        higher_is_better=False,
    )


def _scored(item: Item, answer: Answer, value: float) -> Scored:
    return Scored(item.item_id, item.question, item.reference, answer.text, value, answer.confidence)


def _tell(options: ParityOptions, role: str) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        if not options.quiet:
            print(f"parity: {role}: {done:,} of {total:,} answered", file=sys.stderr)

    return tell
