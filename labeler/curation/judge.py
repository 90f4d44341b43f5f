"""A grade for each prompt from the teacher's probabilities of five digits: the step `judge`.

The expected grade over the digits' probabilities tells more than the likeliest digit: Liu et al., "G-Eval",
2023, estimate it by sampling; here the stored logits of one reply's first token give it exactly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labeler.curation.asking import (
    AskPaths,
    Question,
    ask,
    dropped_line,
    filled,
    read_questions,
    write_lines,
)
from labeler.curation.settings import JudgeSettings
from labeler.curation.sifting import Source
from labeler.prompting.tokenization import load_tokenizer
from logitstore import LabelRows
from logitstore.common.config_file import ConfigError

GRADES = (1, 2, 3, 4, 5)
SAMPLING = {"max_tokens": 1, "temperature": 0.0}
"""Sampling of the job that asks: the first token of the reply is the grade."""


@dataclass(frozen=True, slots=True)
class Grade:
    """What the teacher thinks of one prompt."""

    expected: float
    """Mean of the digits 1 to 5 under their probabilities, given that the reply begins with one of them."""
    argmax: int
    """The likeliest of the five."""
    mass: float
    """Probability that the reply begins with one of the five, at T=1."""


NO_GRADE = Grade(expected=0.0, argmax=0, mass=0.0)
"""None of the five digits is among the stored entries."""


@dataclass(frozen=True)
class Agreement:
    """How far two judges agree on the prompts that both graded."""

    num_prompts: int
    same_argmax: float
    """Share with the same likeliest digit."""
    spearman: float
    """Rank correlation of the expected grades; NaN where one of them never varies."""


@dataclass(frozen=True)
class JudgeReport:
    """What the step did."""

    num_judged: int
    num_kept: int
    num_dropped: Mapping[str, int]
    """By reason: "grade" below the threshold, "no_grade" too little mass on digits, or as in `expand`."""
    median_mass: float
    agreement: Agreement | None


def judge(
    document: Mapping[str, Any],
    source: Source,
    out: Path,
    settings: JudgeSettings,
    *,
    compare: Path | None = None,
    quiet: bool = False,
    also_counted: Sequence[str] = (),
) -> JudgeReport:
    """Write to `out` the records whose grade reaches the threshold, and to `OUT.scores.jsonl` all grades.

    Args:
        document: settings of a job; its teacher, workers and limits are used.
        compare: `*.scores.jsonl` of another judge over the same prompts.
        also_counted: stores whose money counts for `limits.max_cost` too.

    Raises:
        ConfigError: the teacher is a server that gives texts alone.
        OwnJobError: the teacher did not answer everything.
    """
    paths = AskPaths(out)
    others = {} if compare is None else _read_scores(compare)
    questions, dropped = read_questions(source)
    questions = list(_with_responses(questions, settings, dropped))
    asks = ((one.ask_id, filled(settings.rubric, _places(one, settings))) for one in questions)
    job, store = ask(document, asks, paths, SAMPLING, rows=True, quiet=quiet, also_counted=also_counted)
    tokenizer = load_tokenizer(job.teacher, job.input, job.sampling)
    digit_of = _DigitOf(tokenizer.decode)
    grades = {reply.record_id: grade_of(reply.rows, digit_of) for reply in store.iter_sequences()}
    kept, low = _by_grade(questions, grades, settings)
    dropped += low
    write_lines(
        paths.beside(".scores.jsonl"),
        ({"id": one.ask_id, **asdict(grades[one.ask_id])} for one in questions if one.ask_id in grades),
    )
    write_lines(paths.dropped, dropped)
    write_lines(out, kept)
    masses = [grade.mass for grade in grades.values()]
    return JudgeReport(
        num_judged=len(grades),
        num_kept=len(kept),
        num_dropped=dict(Counter(line["method"] for line in dropped)),
        median_mass=float(np.median(masses)) if masses else 0.0,
        agreement=None if compare is None else agreement_of(grades, others),
    )


def _by_grade(
    questions: Sequence[Question], grades: Mapping[str, Grade], settings: JudgeSettings
) -> tuple[list[Any], list[dict[str, Any]]]:
    """The records that are kept, and the lines of those that are not."""
    kept, dropped = [], []
    for one in questions:
        grade = grades.get(one.ask_id)
        if grade is None or grade.mass < settings.min_mass:
            reason = "no_grade"
        elif grade.expected < settings.threshold:
            reason = "grade"
        else:
            kept.append(one.prompt.record)
            continue
        score = {} if grade is None else {"score": round(grade.expected, 4), "mass": round(grade.mass, 4)}
        dropped.append(dropped_line(one.prompt.place, one.ask_id, reason, one.prompt.record, **score))
    return kept, dropped


class _DigitOf:
    """The grade that a token shows, each token decoded once; None for all others."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode, self._known = decode, dict[int, int | None]()

    def __call__(self, token_id: int) -> int | None:
        if token_id not in self._known:
            text = self._decode([token_id]).strip()
            self._known[token_id] = int(text) if text in map(str, GRADES) else None
        return self._known[token_id]


def grade_of(rows: LabelRows, digit_of: Callable[[int], int | None]) -> Grade:
    """The grade in the first row of a reply's labels.

    expected = sum over d of d p(d) / sum over d of p(d), d from 1 to 5, with p from the stored logits and
    their exact normaliser at T=1; several tokens that show the same digit (" 4", "4") count together.
    """
    probability: dict[int, float] = dict.fromkeys(GRADES, 0.0)
    if rows.num_rows:
        for place in range(int(rows.count_N[0])):
            digit = digit_of(int(rows.token_ids_NK[0, place]))
            if digit is not None:
                logprob = float(rows.logits_NK[0, place]) - float(rows.logsumexp_NM[0, 0])
                probability[digit] += float(np.exp(logprob))
    mass = sum(probability.values())
    if mass == 0:
        return NO_GRADE
    expected = sum(digit * value for digit, value in probability.items()) / mass
    return Grade(expected, max(GRADES, key=lambda digit: probability[digit]), min(mass, 1.0))


def agreement_of(grades: Mapping[str, Grade], others: Mapping[str, Grade]) -> Agreement:
    both = [(grades[name], others[name]) for name in grades if name in others]
    both = [(one, other) for one, other in both if one.mass and other.mass]
    if not both:
        return Agreement(0, float("nan"), float("nan"))
    from scipy.stats import spearmanr

    same = sum(one.argmax == other.argmax for one, other in both) / len(both)
    first, second = ([pair[side].expected for pair in both] for side in (0, 1))
    varies = len(set(first)) > 1 and len(set(second)) > 1
    return Agreement(
        len(both), same, float(np.asarray(spearmanr(first, second))[0]) if varies else float("nan")
    )


def _with_responses(
    questions: list[Question], settings: JudgeSettings, dropped: list[dict[str, Any]]
) -> Iterator[Question]:
    for one in questions:
        if "{response}" in settings.rubric and not isinstance(
            one.prompt.record.get(settings.response_field), str
        ):
            reason = f"field {settings.response_field!r} holds no text, and the rubric asks for a response"
            dropped.append(
                dropped_line(one.prompt.place, one.ask_id, "unreadable", one.prompt.record, reason=reason)
            )
            continue
        yield one


def _places(one: Question, settings: JudgeSettings) -> dict[str, str]:
    response = one.prompt.record.get(settings.response_field)
    return {"prompt": one.prompt.text, "response": response if isinstance(response, str) else ""}


def _read_scores(path: Path) -> dict[str, Grade]:
    try:
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        return {line["id"]: Grade(line["expected"], line["argmax"], line["mass"]) for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} holds no grades ({error!s:.100}); give the *.scores.jsonl of another judge"
        ) from None
