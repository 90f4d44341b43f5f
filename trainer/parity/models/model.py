"""A causal language model that answers, and does not answer twice.

Shape legend: B sequences of a batch, T tokens, S tokens of a continuation, V vocabulary.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitstore.common.config_file import ConfigError
from logitstore.common.terminal import first_line
from logitstore.inputs.chat_templates import template_errors
from logitstore.models.folder import check_loadable, refuse_no_tokens
from logitstore.models.hub import check_model_name
from trainer.errors import NotFiniteError
from trainer.hf.checks.lengths import student_context
from trainer.hf.loading import not_loaded, refuse_fresh_weights
from trainer.parity.models.answer_book import AnswerBook, key_of
from trainer.parity.models.generation import greedy_answers, take_ends
from trainer.parity.models.identity import identity_of
from trainer.parity.records import Answer, Request

Tell = Callable[[int, int], None]
"""(answered, of how many)"""


class AnsweringModel:
    """Answers from the book, and from the model, which is loaded at the first question that is not in it."""

    def __init__(self, name: str, book: AnswerBook, *, option: str, batch_size: int, tell: Tell) -> None:
        """`option` is the command line's, for errors. Raises ConfigError where there is no such model."""
        check_model_name(name, revision=None, setting=option)
        check_loadable(name, option)
        self.name = name
        self._what = f"{option} = {name!r}"
        self.num_cut_prompts = 0
        """Prompts that were too long for the model, whose beginning was left out."""
        self.num_cut_answers = 0
        """Answers that were not at their end when they were as long as they might be."""
        self._book = book
        self._batch_size = batch_size
        self._tell = tell
        self._model: Any = None
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # of any kind, for whatever stands in its files
            raise ConfigError(
                f"{self._what}: no tokenizer there ({first_line(error)}); give a Hugging Face id or a "
                "folder that holds model and tokenizer"
            ) from error
        refuse_no_tokens(self.tokenizer, name, option)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._identity = [name, identity_of(name)]
        self._ends: set[int] = set()

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        keys = [key_of("answer", self._identity, asdict(request)) for request in requests]
        open_ones = {
            key: request for key, request in zip(keys, requests, strict=True) if key not in self._book
        }
        done = len(requests) - len(open_ones)
        order = sorted(open_ones, key=lambda key: (*_shape(open_ones[key]), len(open_ones[key].prompt)))
        for batch in _batches(order, self._batch_size, lambda key: _shape(open_ones[key])):
            for key, answer in zip(batch, self._generate([open_ones[key] for key in batch]), strict=True):
                self._book.add(key, asdict(answer))
            self._book.flush()
            done += len(batch)
            self._tell(done, len(requests))
        answers = [Answer(**self._book[key]) for key in keys]
        self.num_cut_prompts += sum(answer.is_prompt_cut for answer in answers)
        self.num_cut_answers += sum(answer.is_cut for answer in answers)
        return answers

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]], *, is_chat: bool) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-probability, and whether it is greedy.

        `is_chat`: contexts have the chat template's special tokens, and the tokenizer adds none.
        """
        keys = [key_of("logprob", self._identity, *pair, is_chat) for pair in pairs]
        open_ones = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._book}
        order = sorted(open_ones, key=lambda key: sum(map(len, open_ones[key])))
        done = len(pairs) - len(open_ones)
        for batch in _batches(order, self._batch_size, lambda _: None):
            found = self._loglikelihoods([open_ones[key] for key in batch], is_chat)
            for key, record in zip(batch, found, strict=True):
                self._book.add(key, record)
            self._book.flush()
            done += len(batch)
            self._tell(done, len(pairs))
        known = [self._book[key] for key in keys]
        # The choices of a question have their context in common.
        cut = {context for (context, _), record in zip(pairs, known, strict=True) if record["is_prompt_cut"]}
        self.num_cut_prompts += len(cut)
        return [(record["logprob"], record["is_greedy"]) for record in known]

    def rendered(self, messages: Sequence[Mapping[str, str]], *, begins_answer: bool = True) -> str:
        """The messages by the chat template, with the beginning of an answer, or the last one left open.

        Raises ConfigError for messages that the template refuses.
        """
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=begins_answer,
                continue_final_message=not begins_answer,
            )
        except template_errors() as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ConfigError(
                f"{self._what}: its chat template refuses messages of {roles} ({first_line(error)}): "
                f"{str(messages[-1].get('content'))[:60]!r}; write the questions as it takes them, without a "
                "system message, say"
            ) from error

    def close(self) -> None:
        """Let go of the model's memory."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _loaded(self) -> Any:
        if self._model is None:
            try:
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    self.name, dtype="auto", output_loading_info=True
                )
            except Exception as error:
                remedy = "give a Hugging Face id or a folder that holds config.json and weights"
                raise not_loaded(error, self._what, remedy) from error
            model, loading = loaded
            refuse_fresh_weights(loading, self._what)
            if torch.accelerator.is_available():
                model.to(torch.accelerator.current_accelerator())
            self._ends = take_ends(model, self.tokenizer)
            self._model = model.eval()
        return self._model

    def _generate(self, requests: Sequence[Request]) -> list[Answer]:
        model, first = self._loaded(), requests[0]
        limit = student_context(model)
        if limit is not None:  # at least half of the context is the prompt's
            first = replace(first, max_tokens=min(first.max_tokens, max(limit // 2, 1)))
        prompts = [self._encoded(request.prompt, add_special=not request.is_chat) for request in requests]
        fitting = [_fitting(ids, limit, first.max_tokens) for ids in prompts]
        answers = greedy_answers(model, self.tokenizer, self._ends, fitting, first)
        self._refuse_nan(model, [answer.confidence for answer in answers])
        return answers

    @torch.no_grad()
    def _loglikelihoods(self, pairs: Sequence[tuple[str, str]], is_chat: bool) -> list[dict[str, Any]]:
        model = self._loaded()
        limit = student_context(model)
        encoded = [self._encoded_pair(*pair, is_chat) for pair in pairs]
        longest = max(count for _, count in encoded)
        if limit is not None and longest >= limit:
            raise ConfigError(
                f"{self.name!r}: one of the texts to score has {longest} tokens, and with one token "
                f"before it must fit the model's context of {limit}; leave this task or record out"
            )
        fitting = [_fitting(ids, limit, 0) for ids, _ in encoded]
        inputs = self.tokenizer.pad(
            {"input_ids": [ids for ids, _ in fitting]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        position_BT = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        # Padded on the left, all continuations end at the last place, so only logits before it are needed.
        logits_BTV = model(**inputs, position_ids=position_BT, logits_to_keep=longest + 1).logits
        results = []
        for b, (_, count) in enumerate(encoded):
            logprobs_SV = logits_BTV[b, -count - 1 : -1].float().log_softmax(dim=-1)
            token_S = inputs["input_ids"][b, -count:]
            chosen_S = logprobs_SV.gather(1, token_S[:, None])[:, 0]
            is_greedy = bool((logprobs_SV.argmax(dim=1) == token_S).all())
            results.append(
                {"logprob": float(chosen_S.sum()), "is_greedy": is_greedy, "is_prompt_cut": fitting[b][1]}
            )
        self._refuse_nan(model, [record["logprob"] for record in results])
        return results

    def _refuse_nan(self, model: Any, figures: Iterable[float | None]) -> None:
        """What a model says whose logits are no numbers would pass for wrong answers."""
        if any(figure is not None and math.isnan(figure) for figure in figures):
            raise NotFiniteError(
                f"{self.name!r}: its logits are not finite (NaN or infinite), so that it answers nothing: "
                f"its weights are damaged, its training diverged, or they overflow in {model.dtype}; give "
                "another model"
            )

    def _encoded(self, text: str, *, add_special: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=add_special)["input_ids"]

    def _encoded_pair(self, context: str, continuation: str, is_chat: bool) -> tuple[list[int], int]:
        """Ids of both together, and how many are the continuation's, which gets the spaces between them.

        Line ends of a chat template stay where they are, since they belong to its markers.
        """
        bare = context.rstrip(" ") if is_chat else context.rstrip()
        continuation = context[len(bare) :] + continuation
        before = self._encoded(bare, add_special=not is_chat)
        whole = self._encoded(bare + continuation, add_special=not is_chat)
        if not before:
            start = self.tokenizer.bos_token_id
            whole = [self.tokenizer.eos_token_id if start is None else start, *whole]
            before = whole[:1]
        return whole, max(len(whole) - len(before), 1)


def _fitting(ids: list[int], limit: int | None, num_new: int) -> tuple[list[int], bool]:
    """Those before which there is room, without their beginning where that is too long; whether it was."""
    if limit is None or len(ids) <= limit - num_new:
        return ids, False
    return ids[num_new - limit :], True


def _shape(request: Request) -> tuple[int, tuple[str, ...]]:
    """Requests of one batch have this in common."""
    return request.max_tokens, request.until


def _batches(keys: Sequence[str], size: int, alike: Callable[[str], Any]) -> list[list[str]]:
    batches: list[list[str]] = []
    for key in keys:
        if batches and len(batches[-1]) < size and alike(batches[-1][0]) == alike(key):
            batches[-1].append(key)
        else:
            batches.append([key])
    return batches
