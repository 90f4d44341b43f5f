"""The messages that a chat template made a prompt of: taken apart, and proved by rendering them anew."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from logitstore.errors import UnsupportedInputError
from logitstore.inputs.chat_templates import template_errors

Message = dict[str, str]
Render = Callable[[Sequence[Mapping[str, str]], bool], str]
"""(messages, add_generation_prompt) -> text; raises UnsupportedInputError where the template refuses them."""

SYSTEM, USER, ANSWER, NEXT = "Qsystemq", "Quserq", "Qanswerq", "Qnextq"
"""Contents whose places show what the template puts around contents."""
THINK, THINK_END = "<think>", "</think>"
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_ABSENT: dict[str, Any] = {"tools": None, "documents": None}
"""What transformers gives every template, also where there are none: None is told from what is not given."""
_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
"""What templates write at the borders of turns: <|im_start|>, </s>, [INST]."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What the template writes before, between and after contents."""

    start: str
    """Before a first user's content where no system message is given."""
    system_start: str | None
    """Before a system's content; None where the template takes none."""
    system_end: str
    """Between it and a user's."""
    user_end: str
    """Between a user's content and an answer given."""
    answer_end: str
    """Between an answer and the next user's content."""
    prompt_end: str
    """After the last user's content: where the teacher goes on."""


class PromptParser:
    """Takes prompts apart. Raises UnsupportedInputError for a template that gives nothing to hold on to."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._frame = frame = _frame_of(render)
        around = (frame.start, frame.system_start or "", frame.system_end, frame.user_end, frame.answer_end)
        self._markers = {name for text in around for name in _MARKER.findall(text)} - {THINK, THINK_END}

    def messages(self, prompt: str) -> list[Message] | None:
        """The messages that render to exactly this prompt; None where none were found, or where a content
        would hold the markers of a turn: those of a role that is not told apart, a tool's say."""
        frame = self._frame
        if not prompt.endswith(frame.prompt_end):
            return None
        body = prompt.removesuffix(frame.prompt_end)
        for found in (self._without_system(body), self._with_system(body)):
            if found is not None and self._is_same(found, prompt):
                return found
        return None

    def _without_system(self, body: str) -> list[Message] | None:
        start = self._frame.start
        return self._turns(body.removeprefix(start)) if body.startswith(start) else None

    def _with_system(self, body: str) -> list[Message] | None:
        start = self._frame.system_start
        if start is None or not body.startswith(start):
            return None
        system, border, rest = body.removeprefix(start).partition(self._frame.system_end)
        return [{"role": "system", "content": system}, *self._turns(rest)] if border else None

    def _turns(self, text: str) -> list[Message]:
        messages: list[Message] = []
        while True:
            user, border, rest = text.partition(self._frame.user_end)
            answer, end, rest = rest.partition(self._frame.answer_end)
            if not border or not end:
                return [*messages, {"role": "user", "content": text}]
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
            text = rest

    def _is_same(self, messages: Sequence[Message], prompt: str) -> bool:
        if any(marker in message["content"] for message in messages for marker in self._markers):
            return False
        try:
            return self._render(messages, True) == prompt
        except UnsupportedInputError:
            return False


def renderer(template: str, special_tokens: Mapping[str, str], variables: Mapping[str, Any]) -> Render:
    """The template as a function, in Jinja's sandbox, as transformers sets it up.

    Raises UnsupportedInputError without the package jinja2, and for a template that is none.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise UnsupportedInputError(
            "messages are told apart by the chat template, which needs jinja2: pip install jinja2, or export "
            "--to prompt-completion"
        ) from error

    def refuse(text: str) -> None:
        raise TemplateError(text)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    refused = template_errors()
    try:
        compiled = environment.from_string(_GENERATION.sub("", template))
    except refused as error:
        raise UnsupportedInputError(
            f"the store's chat template is none ({_said(error)}); it is damaged"
        ) from None

    def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        try:
            return compiled.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **{**_ABSENT, **special_tokens, **variables},
            )
        except refused as error:
            raise UnsupportedInputError(f"the chat template refuses the messages ({_said(error)})") from None

    return render


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def reasoning_apart(prompt: str, answer: str) -> tuple[str | None, str]:
    """(reasoning, the rest) of an answer that thinks first, in the prompt's tag or its own; else None before
    the answer."""
    opened = prompt.rstrip().endswith(THINK)
    if not opened and not answer.lstrip().startswith(THINK):
        return None, answer
    thought = answer if opened else answer.lstrip().removeprefix(THINK)
    reasoning, end, rest = thought.partition(THINK_END)
    return reasoning.strip("\n"), rest.lstrip("\n") if end else ""


def _frame_of(render: Render) -> Frame:
    user, answer = {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}
    following, system = {"role": "user", "content": NEXT}, {"role": "system", "content": SYSTEM}
    start, user_end, answer_end, _ = _around(render([user, answer, following], False), USER, ANSWER, NEXT)
    prompt_end = _around(render([user], True), USER)[1]
    try:
        system_start, system_end, _ = _around(render([system, user], True), SYSTEM, USER)
    except UnsupportedInputError:
        system_start, system_end = None, ""
    return Frame(start, system_start, system_end, user_end, answer_end, prompt_end)


def _around(text: str, *contents: str) -> list[str]:
    parts = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found:
            raise UnsupportedInputError(
                "the chat template does not show the contents of messages, so they cannot be told apart; "
                "export --to prompt-completion"
            )
        parts.append(before)
    return [*parts, text]
