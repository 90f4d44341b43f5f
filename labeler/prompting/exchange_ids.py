"""The ids of an exchange, by the chat template or as plain text.

In mode "score" labels start exactly at the first token of the response: prompt and response are tokenised
as a whole and must begin with the prompt's own ids; where a merge crosses the border, the two parts are
tokenised apart, as they would be when the response is generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np

from labeler.config.loading import InputConfig, JobConfig
from labeler.errors import BadRecordError
from labeler.prompting.conversations import Exchange
from labeler.prompting.rendering import (
    continuation,
    end_texts,
    first_marker,
    shown,
    up_to_its_end,
    with_bos,
)
from labeler.prompting.segment_marks import SegmentMarks, find_marks
from labeler.prompting.template_probe import TemplateProbe
from labeler.prompting.tokenization import Conversation, Message, Tokenizer
from logitstore.inputs.chat_templates import REASONING_NAMES
from logitstore.inputs.parts import is_learned

THINK = ("<think>", "</think>")
"""Marks of reasoning that a generation prompt may open, where the template names none."""


class ExchangeIds:
    """Turns exchanges of one job into ids, and counts those that took another way than the usual one."""

    num_split_borders: int = 0
    """Records whose prompt and response were tokenised apart, since a merge crosses their border."""
    num_raw_answers: int = 0
    """Records whose response is their own text after the generation prompt, since the chat template renders
    a given answer differently from what the teacher writes."""
    num_changed_texts: int = 0
    """Records with a message of which the chat template shows something else than its text as it is."""
    num_with_ends: int = 0
    """Records with an end of turn in a text, which the teacher takes for one."""

    def __init__(self, job: JobConfig, tokenizer: Tokenizer) -> None:
        self._input: InputConfig = job.input
        self._mode: Literal["score", "generate"] = job.labels.mode
        self._tokenizer = tokenizer
        self._probe = TemplateProbe(tokenizer, job.input.ignore_keys)
        found = find_marks(tokenizer, job.labels.reasoning) if job.has_marks else SegmentMarks()
        self._think = THINK if found.reasoning is None else tuple(mark.text for mark in found.reasoning)
        self._first_marker = first_marker(tokenizer) if job.input.chat_template else ""
        self._end_texts = end_texts(tokenizer)

    @property
    def fallbacks(self) -> str:
        """How many records so far took another way than the usual one, in words; "" where none did."""
        counts = (
            (self.num_split_borders, "were tokenised apart at the border of prompt and response"),
            (self.num_raw_answers, "have their answer as it is after the generation prompt"),
            (
                self.num_changed_texts,
                "have a text that the chat template changes or shortens, as the reasoning of earlier turns",
            ),
            (self.num_with_ends, f"have {' or '.join(self._end_texts)} in a text, where a turn ends then"),
        )
        return ", ".join(f"{count:,} records {what}" for count, what in counts if count)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """For a second exchange of a record, which counts once."""
        counts = self.num_split_borders, self.num_raw_answers, self.num_with_ends, self.num_changed_texts
        yield
        self.num_split_borders, self.num_raw_answers, self.num_with_ends, self.num_changed_texts = counts

    def last_turn(self, exchange: Exchange) -> tuple[list[int], list[int] | None]:
        """Ids of the prompt, and of the response where there is one."""
        if self._input.chat_template:
            return self._with_template(exchange)
        contents = [message["content"] for message in exchange.given.messages]
        response = None if exchange.response is None else exchange.response["content"]
        if (
            exchange.given.tools
            or not all(isinstance(text, str) for text in contents)
            or (exchange.response is not None and not isinstance(response, str))
        ):
            raise BadRecordError(
                "it has tools or messages without content, which plain text cannot hold; set "
                "input.chat_template = true",
                "bad_type",
            )
        if response is None:
            return with_bos(self._tokenizer, self._tokenizer.encode("".join(contents))), None
        prompt_ids, response_ids = self._as_a_whole("".join(contents), response)
        return with_bos(self._tokenizer, prompt_ids), response_ids

    def _with_template(self, exchange: Exchange) -> tuple[list[int], list[int] | None]:
        self._refuse_rendered(exchange.given.messages[-1])
        given, response = exchange.given, exchange.response
        if self._mode == "generate":
            response = None
        self._count_ends((*given.messages, *(() if response is None else (response,))))
        prompt, prompt_text = shown(self._tokenizer, given, add_generation_prompt=True)
        is_whole = self._probe.check_contents(prompt, prompt_text)
        if response is None:
            self.num_changed_texts += not is_whole
            self._probe.check(prompt)
            return self._tokenizer.encode(prompt_text), None
        whole, whole_text = shown(
            self._tokenizer, Conversation((*given.messages, response), given.tools, given.documents)
        )
        if whole_text.startswith(prompt_text):
            response_text = whole_text[len(prompt_text) :]
            answer = response["content"]
            is_whole = is_whole and (not isinstance(answer, str) or answer.strip() in response_text)
        else:
            response_text, read = self._raw_answer(prompt_text, response)
            rest = {k: value for k, value in response.items() if k not in REASONING_NAMES or value != read}
            whole = replace(whole, messages=(*whole.messages[:-1], rest))
        self._probe.check(whole)
        self.num_changed_texts += not is_whole
        prompt_ids, response_ids = self._as_a_whole(prompt_text, response_text)
        return prompt_ids, up_to_its_end(self._tokenizer, response_ids)

    def all_turns(self, exchange: Exchange) -> tuple[list[int], list[int], np.ndarray]:
        """Ids up to the first answer, the others, and which of all of them the assistant wrote."""
        given, messages = exchange.given, exchange.messages
        self._refuse_rendered(messages[0])
        self._count_ends(messages)
        whole, text = shown(self._tokenizer, Conversation(messages, given.tools, given.documents))
        whole_ids = self._tokenizer.encode(text)
        ids = up_to_its_end(self._tokenizer, whole_ids)
        self._probe.check(whole)
        self.num_changed_texts += not self._probe.check_contents(whole, text)
        all_count = all(is_learned(message) for message in messages)
        marked_ids, marked = (all_count and self._tokenizer.answers_marked(whole)) or (None, [])
        if marked_ids == whole_ids:
            mask_T = np.array(marked[: len(ids)], bool)
        else:
            mask_T = self._answers_by_prefixes(whole, ids)
        if not mask_T.any():
            reason = (
                "no answer of the conversation counts, by the chat template's marks or the messages' weight"
            )
            raise BadRecordError(reason, "no_response")
        first = int(mask_T.argmax())
        return ids[:first], ids[first:], mask_T

    def _answers_by_prefixes(self, whole: Conversation, ids: list[int]) -> np.ndarray:
        """bool over the conversation's ids, its answers; by what each turn adds to the turns before."""
        mask_T = np.zeros(len(ids), bool)
        for place, message in enumerate(whole.messages):
            if message["role"] != "assistant" or not is_learned(message):
                continue
            before = Conversation(whole.messages[:place], whole.tools, whole.documents)
            after = Conversation(whole.messages[: place + 1], whole.tools, whole.documents)
            start_ids = self._tokenizer.encode(self._render(before, add_generation_prompt=True))
            end_ids = up_to_its_end(self._tokenizer, self._tokenizer.encode(self._render(after)))
            if ids[: len(start_ids)] != start_ids or ids[: len(end_ids)] != end_ids:
                raise BadRecordError(
                    f"the chat template renders turn {place + 1} otherwise in the middle of the conversation "
                    "than at its end, so it cannot be labeled together with the others; set labels.turns = "
                    '"each" for a sequence of each turn, or "last"',
                    "unstable_template",
                )
            mask_T[len(start_ids) : len(end_ids)] = True
        return mask_T

    def _render(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
        return shown(self._tokenizer, conversation, add_generation_prompt=add_generation_prompt)[1]

    def _raw_answer(self, prompt_text: str, response: Message) -> tuple[str, str]:
        """The given text as the teacher would have written it after the generation prompt, and an end; and
        the message's reasoning where that is in it."""
        answer, reasoning = response["content"], ""
        ends = self._tokenizer.ends.tokens
        start, end = self._think
        opened = prompt_text.rstrip().endswith(start)
        if opened and isinstance(answer, str):
            if end not in answer:
                given = (response.get(key) for key in REASONING_NAMES)
                reasoning = next((value for value in given if isinstance(value, str) and value), "")
                answer = f"{reasoning}\n{end}\n\n{answer}" if reasoning else answer
            if answer.lstrip().startswith(start):
                answer = answer.lstrip().removeprefix(start).removeprefix("\n")
        if (
            not isinstance(answer, str)
            or response.get("tool_calls")
            or not ends
            or (opened and end not in answer)
        ):
            raise BadRecordError(
                "the chat template renders the conversation differently with its answer than without, so the "
                "answer's first token cannot be told"
                + (f", and it opens {start}, which the answer does not close" if opened else "")
                + f"; give an answer with its reasoning before {end}, set input.chat_template to a template "
                "file that keeps answers as they are, or give token_ids",
                "bad_prompt",
            )
        self.num_raw_answers += 1
        named_by_template = [token for token in ends if "chat template" in token.named_by]
        return answer + (named_by_template or list(ends))[0].text, reasoning

    def _count_ends(self, messages: Sequence[Message]) -> None:
        texts = [message["content"] for message in messages if isinstance(message["content"], str)]
        self.num_with_ends += any(end in text for end in self._end_texts for text in texts)

    def _refuse_rendered(self, last: Message) -> None:
        content = last["content"]
        if (
            self._first_marker
            and isinstance(content, str)
            and content.lstrip().startswith(self._first_marker)
        ):
            raise BadRecordError(
                f"the text begins with {self._first_marker!r}, as the chat template does: it is rendered "
                "already and would be put into the template once more; set input.chat_template = false",
                "rendered_already",
            )

    def _as_a_whole(self, prompt_text: str, response_text: str) -> tuple[list[int], list[int]]:
        prompt_ids = self._tokenizer.encode(prompt_text)
        whole_ids = self._tokenizer.encode(prompt_text + response_text)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return prompt_ids, whole_ids[len(prompt_ids) :]
        self.num_split_borders += 1
        return prompt_ids, continuation(self._tokenizer, response_text)
