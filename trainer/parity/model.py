"""A causal language model that answers, and does not answer twice.

Shape legend: B sequences of a batch, T tokens, S steps of generation, V vocabulary.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor

from logitstore.common.config_file import ConfigError
from logitstore.common.hub import check_model_name
from logitstore.common.terminal import first_line
from trainer.parity.answer_book import AnswerBook, key_of
from trainer.parity.records import Answer, Request

Tell = Callable[[int, int], None]
"""(answered, of how many)"""


class AnsweringModel:
    """Answers from the book, and from the model, which is loaded at the first question that is not in it."""

    def __init__(self, name: str, book: AnswerBook, *, option: str, batch_size: int, tell: Tell) -> None:
        """`option` is the command line's, for errors. Raises ConfigError where there is no such model."""
        check_model_name(name, revision=None, setting=option)
        self.name = name
        self.num_cut_prompts = 0
        """Prompts that were too long for the model, whose beginning was left out."""
        self._identity = [name, _contents(Path(name))]
        self._book = book
        self._batch_size = batch_size
        self._tell = tell
        self._model: Any = None
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{option} = {name!r}: no tokenizer there ({first_line(error)}); give a Hugging Face id or a "
                "folder that holds model and tokenizer"
            ) from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        keys = [key_of("generate", self._identity, asdict(request)) for request in requests]
        open_ones = {
            key: request for key, request in zip(keys, requests, strict=True) if not self._book.get(key)
        }
        done = len(requests) - len(open_ones)
        order = sorted(open_ones, key=lambda key: (*_shape(open_ones[key]), len(open_ones[key].prompt)))
        for batch in _batches(order, self._batch_size, lambda key: _shape(open_ones[key])):
            for key, answer in zip(batch, self._generate([open_ones[key] for key in batch]), strict=True):
                self._book.add(key, asdict(answer))
            self._book.flush()
            done += len(batch)
            self._tell(done, len(requests))
        return [Answer(**self._known(key)) for key in keys]

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the continuation's log-probability, and whether it is greedy."""
        keys = [key_of("loglikelihood", self._identity, *pair) for pair in pairs]
        open_ones = {key: pair for key, pair in zip(keys, pairs, strict=True) if not self._book.get(key)}
        order = sorted(open_ones, key=lambda key: len(open_ones[key][0]))
        done = len(pairs) - len(open_ones)
        for batch in _batches(order, self._batch_size, lambda _: None):
            found = self._loglikelihoods([open_ones[key] for key in batch])
            for key, (logprob, is_greedy) in zip(batch, found, strict=True):
                self._book.add(key, {"logprob": logprob, "is_greedy": is_greedy})
            self._book.flush()
            done += len(batch)
            self._tell(done, len(pairs))
        return [(self._known(key)["logprob"], self._known(key)["is_greedy"]) for key in keys]

    def close(self) -> None:
        """Let go of the model's memory."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _known(self, key: str) -> dict[str, Any]:
        found = self._book.get(key)
        assert found is not None
        return found

    def _loaded(self) -> Any:
        if self._model is None:
            try:
                model: Any = AutoModelForCausalLM.from_pretrained(self.name, dtype="auto")
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{self.name!r}: no model there ({first_line(error)}); give a Hugging Face id or a "
                    "folder that holds config.json and weights"
                ) from error
            if torch.accelerator.is_available():
                model.to(torch.accelerator.current_accelerator())
            self._model = model.eval()
        return self._model

    @torch.no_grad()
    def _generate(self, requests: Sequence[Request]) -> list[Answer]:
        model, first = self._loaded(), requests[0]
        prompts = [self._encoded(request.prompt, add_special=not request.is_chat) for request in requests]
        prompts = self._fitting(prompts, model, first.max_tokens)
        inputs = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        inputs = inputs.to(model.device)
        ends = _ends(model, self.tokenizer)
        sureness = _Sureness()
        output_BT = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=first.max_tokens,
                eos_token_id=sorted(ends) or None,
                pad_token_id=self.tokenizer.pad_token_id,
                stop_strings=list(first.until) or None,
            ),
            logits_processor=[sureness],
            tokenizer=self.tokenizer,
        )
        logprobs_SB = torch.stack(sureness.logprobs)
        new_BS = output_BT[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._answer(new_BS[b], logprobs_SB[:, b], ends, first) for b in range(len(requests))]

    def _answer(self, new_S: list[int], logprob_S: Tensor, ends: set[int], request: Request) -> Answer:
        stops = {*ends, self.tokenizer.pad_token_id}
        count = next((place for place, token in enumerate(new_S) if token in stops), len(new_S))
        text = self.tokenizer.decode(new_S[:count], skip_special_tokens=True)
        found = [place for stop in request.until if (place := text.find(stop)) >= 0]
        # The token that ends it counts: whether to stop is part of the answer.
        num_tokens = min(count + 1, len(new_S))
        return Answer(
            text=text[: min(found)] if found else text,
            confidence=float(logprob_S[:num_tokens].mean().exp()),
            is_cut=not found and count == request.max_tokens,
        )

    @torch.no_grad()
    def _loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        model = self._loaded()
        encoded = [self._encoded_pair(*pair) for pair in pairs]
        longest = max(count for _, count in encoded)
        ids = self._fitting([ids for ids, _ in encoded], model, 0)
        inputs = self.tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(
            model.device
        )
        position_BT = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        # Padded on the left, all continuations end at the last place, so only logits before it are needed.
        logits_BTV = model(**inputs, position_ids=position_BT, logits_to_keep=longest + 1).logits
        results = []
        for b, (_, count) in enumerate(encoded):
            logprobs_SV = logits_BTV[b, -count - 1 : -1].float().log_softmax(dim=-1)
            token_S = inputs["input_ids"][b, -count:]
            chosen_S = logprobs_SV.gather(1, token_S[:, None])[:, 0]
            is_greedy = bool((logprobs_SV.argmax(dim=1) == token_S).all())
            results.append((float(chosen_S.sum()), is_greedy))
        return results

    def _encoded(self, text: str, *, add_special: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=add_special)["input_ids"]

    def _encoded_pair(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Ids of both together, and how many are the continuation's, which gets the spaces between them."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        before = self._encoded(bare, add_special=True)
        whole = self._encoded(bare + continuation, add_special=True)
        if not before:
            start = self.tokenizer.bos_token_id
            whole = [self.tokenizer.eos_token_id if start is None else start, *whole]
            before = whole[:1]
        return whole, max(len(whole) - len(before), 1)

    def _fitting(self, prompts: list[list[int]], model: Any, num_new: int) -> list[list[int]]:
        """Those too long for the model without their beginning; they are counted."""
        limit = getattr(model.config, "max_position_embeddings", None)
        if not isinstance(limit, int):
            return prompts
        room = max(limit - num_new, 1)
        self.num_cut_prompts += sum(len(ids) > room for ids in prompts)
        return [ids[-room:] for ids in prompts]


class _Sureness(LogitsProcessor):
    """Keeps the log-probability of the top token, which greedy decoding takes, of each step."""

    def __init__(self) -> None:
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        scores_BV = scores.float()
        self.logprobs.append((scores_BV.max(dim=1).values - scores_BV.logsumexp(dim=1)).cpu())
        return scores


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end an answer."""
    found = getattr(model.generation_config, "eos_token_id", None)
    ids = found if isinstance(found, list) else [found]
    return {token for token in (*ids, tokenizer.eos_token_id) if token is not None}


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


def _contents(folder: Path) -> str:
    """Changes when the model in the folder does; "" for a name of the hub."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")]):
        if path.name in ("train.json", "metrics.json", "before.json"):
            continue  # of the run that made it
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest() if folder.is_dir() else ""
