"""Greedy answers of a loaded model, and how sure it was of each.

Shape legend: B sequences of a batch, T tokens, S steps of generation, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from trainer.parity.records import Answer, Request


def take_ends(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end an answer. The model's other settings of generation, such as a repetition penalty, are
    taken from it: `generate` would use each that a call leaves open."""
    found = model.generation_config.eos_token_id
    ids = found if isinstance(found, list) else [found]
    model.generation_config = GenerationConfig()
    return {token for token in (*ids, tokenizer.eos_token_id) if token is not None}


@torch.no_grad()
def greedy_answers(
    model: Any, tokenizer: Any, ends: set[int], prompts: Sequence[tuple[list[int], bool]], request: Request
) -> list[Answer]:
    """The answer to each (ids, is its beginning left out). It does not depend on the other prompts.

    `request` says when answers end.
    """
    inputs = tokenizer.pad(
        {"input_ids": [ids for ids, _ in prompts]}, padding_side="left", return_tensors="pt"
    )
    inputs = inputs.to(model.device)
    start = inputs["input_ids"].shape[1]
    sureness, stops = _Sureness(), _Stops(tokenizer, request.until, start)
    output_BT = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=request.max_tokens,
            eos_token_id=sorted(ends) or None,
            pad_token_id=tokenizer.pad_token_id,
        ),
        logits_processor=[sureness],
        stopping_criteria=[stops],
    )
    new_BS, logprobs_SB = output_BT[:, start:].tolist(), torch.stack(sureness.logprobs)
    answers = []
    for b, (new_S, (_, is_prompt_cut)) in enumerate(zip(new_BS, prompts, strict=True)):
        ended = next((place for place, token in enumerate(new_S) if token in ends), None)
        stopped = stops.num_tokens.get(b)
        if stopped is not None and (ended is None or stopped <= ended):
            own, num_tokens = new_S[:stopped], stopped
        elif ended is not None:
            # The token that ends it counts: whether to stop is part of the answer.
            own, num_tokens = new_S[:ended], ended + 1
        else:
            own, num_tokens = new_S, len(new_S)
        text = tokenizer.decode(own, skip_special_tokens=True)
        places = [place for stop in request.until if (place := text.find(stop)) >= 0]
        answers.append(
            Answer(
                text=text[: min(places)] if places else text,
                confidence=float(logprobs_SB[:num_tokens, b].mean().exp()),
                is_cut=stopped is None and ended is None,
                is_prompt_cut=is_prompt_cut,
            )
        )
    return answers


class _Sureness(LogitsProcessor):
    """Keeps the log-probability of the top token, which greedy decoding takes, of each step."""

    def __init__(self) -> None:
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        scores_BV = scores.float()
        self.logprobs.append((scores_BV.max(dim=1).values - scores_BV.logsumexp(dim=1)).cpu())
        return scores


class _Stops(StoppingCriteria):
    """Ends an answer that holds one of the texts, special tokens among them, and keeps its length then.

    The library's own also meets a text that begins in the prompt, and does not say where.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str], start: int) -> None:
        self._tokenizer = tokenizer
        self._until = until
        self._start = start
        # A token has at least one byte; the others are for characters that span tokens.
        self._window = max((len(stop.encode()) for stop in until), default=0) + 4
        self.num_tokens: dict[int, int] = {}
        """By sequence of the batch, those that have stopped."""

    def __call__(self, input_ids: Tensor, scores: Any, **given: Any) -> Tensor:  # type: ignore[override]
        num_new = input_ids.shape[1] - self._start
        if self._until:
            tails = input_ids[:, -min(num_new, self._window) :].tolist()
            for b, text in enumerate(self._tokenizer.batch_decode(tails)):
                if b not in self.num_tokens and any(stop in text for stop in self._until):
                    self.num_tokens[b] = num_new
        is_done = [b in self.num_tokens for b in range(len(input_ids))]
        return torch.tensor(is_done, device=input_ids.device)
