"""A third model as the judge: the mean of the grades 1 to 5 that it would give."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.parity.models.model import AnsweringModel

GRADES = ("1", "2", "3", "4", "5")
QUESTION = """Grade the answer to a question against the right answer.

Question: {question}

Right answer: {reference}

Answer to grade: {output}

How right is the answer to grade, from 1 (wrong) to 5 (right)? Reply with one digit."""


def judged(judge: AnsweringModel, asked: Sequence[tuple[str, str, str]]) -> list[float]:
    """Scores from 0 to 1 of (question, reference, output): the expected grade."""
    is_chat = judge.tokenizer.chat_template is not None
    pairs = []
    for question, reference, output in asked:
        text = QUESTION.format(question=question, reference=reference, output=output)
        if is_chat:
            text = judge.rendered([{"role": "user", "content": text}])
        else:
            text += "\nGrade: "
        pairs += [(text, grade) for grade in GRADES]
    logprobs = [logprob for logprob, _ in judge.loglikelihoods(pairs, is_chat=is_chat)]
    scores = []
    for start in range(0, len(logprobs), len(GRADES)):
        own = logprobs[start : start + len(GRADES)]
        weights = [math.exp(value - max(own)) for value in own]
        mean = sum(weight * grade for grade, weight in enumerate(weights)) / sum(weights)
        scores.append(mean / (len(GRADES) - 1))
    return scores
