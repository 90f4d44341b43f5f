"""A server that answers completions in the form of vLLM's, with the logits of the stand-in teacher.

It samples by the request's seed from all ids, and refuses what vLLM's refuses: a wrong key, another model, too many entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, PreTrainedTokenizerFast

from labeler.config.loading import LabelsConfig, SamplingConfig, TeacherConfig
from labeler.teacher.fake import FakeTeacher
from tests.labeler.teacher.openai.json_server import Reply, json_server
from tests.labeler.teacher.openai.server import KEY, SERVED

VOCAB_SIZE = 512
MOST_LOGPROBS = 20
END_ID = 257


def write_model(folder: Path) -> Path:
    """Config and tokenizer, which is all that the labeler reads of a model that a server holds."""
    LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=256, eos_token_id=END_ID).save_pretrained(
        folder
    )
    words = {chr(32 + index): index for index in range(VOCAB_SIZE)}
    model = Tokenizer(WordLevel(words, unk_token=" "))
    model.pre_tokenizer = Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=model, unk_token=" ").save_pretrained(folder)
    return folder


class StandIn:
    def __init__(self, folder: Path) -> None:
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        config = TeacherConfig(engine="fake", max_model_len=256)
        self._teacher = FakeTeacher(config, LabelsConfig(), SamplingConfig())

    def logprobs(self, ids: list[int]) -> np.ndarray:
        """float64 [T, V], what follows each prefix."""
        logits_TV = self._teacher._logits(np.array(ids), 0).astype(np.float64)
        return logits_TV - np.logaddexp.reduce(logits_TV, axis=1, keepdims=True)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body."""
        top_k = max(body.get("logprobs") or 0, body.get("prompt_logprobs") or 0)
        if body["model"] != SERVED:
            return 404, _error(f"The model `{body['model']}` does not exist.")
        if top_k > MOST_LOGPROBS:
            return 400, _error(f"Requested sample logprobs of {top_k}, which is greater than max allowed: 20")
        prompt = body["prompt"]
        given = self._tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        if len(given) + body["max_tokens"] > 257:
            return 400, _error("This model's maximum context length is 256 tokens.")
        written: list[int] = []
        rows: list[dict[str, float]] = []
        reason = "length"
        random = np.random.default_rng(body.get("seed", 0))
        while len(written) < body["max_tokens"]:
            row_V = self.logprobs([*given, *written])[-1]
            sampled_V = row_V.copy()
            if len(written) < body.get("min_tokens", 0):
                sampled_V[body.get("stop_token_ids") or []] = -np.inf
            if temperature := body.get("temperature", 1.0):
                sampled_V = sampled_V / temperature + random.gumbel(size=len(row_V))
            written.append(int(sampled_V.argmax()))
            rows.append(
                {f"token_id:{i}": value for i, value in _top(row_V, body.get("logprobs") or 1, written[-1])}
            )
            if written[-1] in (body.get("stop_token_ids") or ()):
                reason = "stop"
                break
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": reason, "logprobs": None}
        if body.get("return_token_ids"):
            choice |= {"prompt_token_ids": given, "token_ids": written}
        if body.get("logprobs"):
            names = [f"token_id:{i}" for i in written]
            values = [row[name] for row, name in zip(rows, names, strict=True)]
            choice["logprobs"] = {
                "tokens": names,
                "token_logprobs": values,
                "top_logprobs": rows,
                "text_offset": [],
            }
        if body.get("prompt_logprobs"):
            all_TV = self.logprobs(given)
            choice["prompt_logprobs"] = [None] + [
                {
                    str(i): {"logprob": value, "rank": int((row_V >= value).sum()), "decoded_token": ""}
                    for i, value in _top(row_V, body["prompt_logprobs"], actual)
                }
                for row_V, actual in zip(all_TV, given[1:], strict=False)
            ]
        return 200, {
            "id": "x",
            "object": "text_completion",
            "created": 0,
            "model": SERVED,
            "choices": [choice],
            "usage": {"prompt_tokens": len(given), "completion_tokens": len(written), "total_tokens": 0},
        }


def _top(row_V: np.ndarray, top_k: int, actual: int) -> list[tuple[int, float]]:
    ids = dict.fromkeys([actual, *(int(i) for i in np.argsort(-row_V, kind="stable")[:top_k])])
    return [(i, float(row_V[i])) for i in ids]


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "code": 400}}


@contextmanager
def stand_in_server(folder: Path) -> Iterator[str]:
    """Its address up to the version."""
    stand_in = StandIn(folder)

    def reply(_: str, headers: Message, body: dict[str, Any]) -> Reply:
        allowed = headers["Authorization"] == f"Bearer {KEY}"
        return stand_in.answer(body) if allowed else (401, _error("Unauthorized"))

    with json_server(reply) as address:
        yield address
