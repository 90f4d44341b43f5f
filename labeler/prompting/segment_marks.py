"""By which marks a teacher's reasoning and its calls of tools are told from its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labeler.config.label_settings import ReasoningMarks
from labeler.errors import ChatTemplateError
from labeler.prompting.tokenization import PROBE_ANSWER, PROBE_QUESTION, Conversation, Tokenizer
from logitstore.inputs.chat_templates import REASONING_NAMES

KNOWN_REASONING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<reasoning>", "</reasoning>"),
)
"""Marks looked for in templates that do not print a message's reasoning."""
PROBE_REASONING, PROBE_FUNCTION = "penumbra reasoning", "penumbra_function"


@dataclass(frozen=True, slots=True)
class Mark:
    """A piece of text."""

    text: str
    token_id: int | None = None
    """Where it is one token; None where it is several."""


@dataclass(frozen=True, slots=True)
class SegmentMarks:
    """What encloses the parts of an assistant's turn."""

    reasoning: tuple[Mark, Mark] | None = None
    """Start and end; None where the teacher does not reason apart."""
    tool: tuple[Mark, Mark | None] | None = None
    """Start and end of a call; an end of None is the turn's. None where the template knows no tools."""
    tool_begins_turn: bool = False
    """Whether a call has no mark of its own: its start counts only where the answer begins with it."""

    @property
    def are_tokens(self) -> bool:
        """Whether each mark is one token, so that no text is needed to find it."""
        marks = [*(self.reasoning or ()), *(self.tool or ())]
        return not self.tool_begins_turn and all(mark is None or mark.token_id is not None for mark in marks)

    def __str__(self) -> str:
        parts = []
        if self.reasoning is not None:
            parts.append(f"reasoning between {self.reasoning[0].text!r} and {self.reasoning[1].text!r}")
        if self.tool is not None:
            start, end = self.tool
            until = "the end of the turn" if end is None else repr(end.text)
            parts.append(f"calls of tools from {start.text!r} to {until}")
        return "; ".join(parts) or "no reasoning and no calls of tools, all is answer"


NO_MARKS = SegmentMarks()


def find_marks(tokenizer: Tokenizer, given: ReasoningMarks | None) -> SegmentMarks:
    """The marks of a job: reasoning's as `given`, or found from the chat template like those of calls."""
    pair = (given.start, given.end) if given is not None else _reasoning(tokenizer)
    reasoning = None if pair is None else (_mark(tokenizer, pair[0]), _mark(tokenizer, pair[1]))
    call = _tool_call(tokenizer)
    if call is None:
        return SegmentMarks(reasoning)
    start, end, begins_turn = call
    return SegmentMarks(
        reasoning, (_mark(tokenizer, start), _mark(tokenizer, end) if end else None), begins_turn
    )


def _mark(tokenizer: Tokenizer, text: str) -> Mark:
    ids = tokenizer.encode(text)
    return Mark(text, ids[0] if len(ids) == 1 else None)


def _turn(tokenizer: Tokenizer, answer: Mapping[str, Any], tools: list[Any] | None = None) -> str | None:
    """What the template writes for an assistant's turn, its opening included; None where it refuses it."""
    question = {"role": "user", "content": PROBE_QUESTION}
    try:
        return tokenizer.render_chat(
            Conversation((question, {"role": "assistant", **answer}), tools), add_generation_prompt=False
        ).rpartition(PROBE_QUESTION)[2]
    except ChatTemplateError:
        return None


def _reasoning(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """As the template prints a message's reasoning; else a known pair that the template names."""
    for key in REASONING_NAMES:
        turn = _turn(tokenizer, {"content": PROBE_ANSWER, key: PROBE_REASONING}) or ""
        before, found, after = turn.partition(PROBE_REASONING)
        if found and PROBE_ANSWER in after:
            opening, closing = before.split(), after.partition(PROBE_ANSWER)[0].split()
            if opening and closing and not opening[-1][-1].isalnum():
                return _last_mark(opening[-1], closing[-1]), _first_mark(closing[0])
    template = tokenizer.chat_template or ""
    return next((pair for pair in KNOWN_REASONING if pair[1] in template), None)


def _last_mark(text: str, elsewhere: str) -> str:
    """What opens the reasoning: the shortest end of `text` from a bracket on that does not open the answer
    too, as <|message|> does in <|channel|>analysis<|message|>."""
    brackets = [i for i, sign in enumerate(text) if sign in "<["]
    ends = [text[i:] for i in reversed(brackets)]
    return next((end for end in ends if not elsewhere.endswith(end)), ends[-1] if ends else text)


def _first_mark(text: str) -> str:
    """What closes the reasoning: up to the first closing bracket, where `text` begins with an opening one."""
    closing = {"<": ">", "[": "]"}.get(text[0])
    return text[: text.index(closing) + 1] if closing is not None and closing in text else text


def _tool_call(tokenizer: Tokenizer) -> tuple[str, str, bool] | None:
    """(start, end, whether it has no start of its own) of a call as the template prints it."""
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": PROBE_FUNCTION, "arguments": {"a": "penumbra_value"}},
    }
    tool = {
        "type": "function",
        "function": {
            "name": PROBE_FUNCTION,
            "description": "a probe",
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
        },
    }
    turn = _turn(tokenizer, {"content": "", "tool_calls": [call]}, [tool])
    plain = _turn(tokenizer, {"content": PROBE_ANSWER})
    if turn is None or plain is None or PROBE_FUNCTION not in turn:
        return None
    opening, _, closing = plain.partition(PROBE_ANSWER)
    common = 0
    while common < min(len(opening), len(turn)) and opening[common] == turn[common]:
        common += 1
    body = turn[common:].strip()
    body = body.removesuffix(closing.strip()).strip() if closing.strip() else body
    before = body.partition(PROBE_FUNCTION)[0]
    after = body.rpartition("penumbra_value")[2]
    start = before.split("{")[0].strip()
    while start.endswith("["):
        start = start[:-1].rstrip()  # a list of calls; a mark such as [TOOL_CALLS] ends with its own bracket
    end = after.rpartition("}")[2].strip().removeprefix("]").strip()
    if start:
        return start.split()[0], (end.split()[-1] if end else ""), False
    prefix = before.strip()
    return (prefix, "", True) if prefix else None
