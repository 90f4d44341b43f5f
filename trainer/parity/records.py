"""What is asked, what is answered, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MatchKind = Literal["exact", "contains", "regex", "judge", "bits_per_byte", "judge_bits_per_byte"]
JUDGED = ("judge", "judge_bits_per_byte")
"""Those that need a third model."""
MAX_TOKENS = 256
"""Most tokens of an answer where neither a task nor the command sets them."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to be gone on with, greedily."""

    prompt: str
    """Text; a chat template has been applied if one is to be."""
    is_chat: bool
    """The text has the template's special tokens, and the tokenizer adds none."""
    until: tuple[str, ...]
    """The answer ends before the first of these."""
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    confidence: float | None
    """Geometric mean of the probabilities of its tokens; None where nobody knows them."""
    is_cut: bool
    """It was not at its end when it was as long as it might be."""
    is_prompt_cut: bool
    """The prompt was too long for the model, and its beginning was left out."""


@dataclass(frozen=True, slots=True)
class Item:
    """One record of a user's own file."""

    item_id: str
    """Its own id, else "line N", with the file before it where there are several."""
    messages: tuple[Mapping[str, str], ...]
    """Messages with `role` and `content`; the last is the user's."""
    reference: str
    """The right answer; "" where none is needed."""

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]

    @property
    def asked(self) -> str:
        """All that the user says."""
        return "\n\n".join(one["content"] for one in self.messages if one["role"] == "user")


@dataclass(frozen=True, slots=True)
class Scored:
    """One item, answered by one model."""

    item_id: str
    question: str
    reference: str
    output: str
    score: float
    confidence: float | None
    weight: float = 1.0
    """What the item counts in a mean: the bytes of a text whose score is per byte."""


@dataclass(frozen=True, slots=True)
class Scores:
    """All items by one measure, answered by one model."""

    items: Sequence[Scored]
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True)
class Pair:
    """One item, answered by both."""

    item_id: str
    question: str
    reference: str
    teacher: Scored
    student: Scored

    def to_dict(self, task: str) -> dict[str, Any]:
        return {
            "task": task,
            "item": self.item_id,
            "question": self.question,
            "reference": self.reference,
            "teacher": {
                "output": self.teacher.output,
                "score": self.teacher.score,
                "weight": self.teacher.weight,
            },
            "student": {
                "output": self.student.output,
                "score": self.student.score,
                "weight": self.student.weight,
                "confidence": self.student.confidence,
            },
        }
