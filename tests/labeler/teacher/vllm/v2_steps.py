"""vLLM's V2 worker for prompt logprobs, step by step, on logits made up.

Shape legend: N label rows, K stored entries, V vocabulary.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from labeler.records import TokenizedPrompt
from labeler.teacher.label_rows import CapturedColumns, ColumnLayout, rows_from_columns
from logitstore.records import LabelRows


class V2Steps:
    """vLLM's own `PromptLogprobsWorker` with the capture, on logits made here in place of a model's.

    The one Triton kernel of the worker needs a GPU, so the tokens that it would look up are given. There
    are two requests, "a" and "b", of nine tokens; ids are given for those behind the first `prompt_length`.
    """

    def __init__(self, is_given: bool, monkeypatch: pytest.MonkeyPatch, prompt_length: int = 1) -> None:
        import torch
        from vllm import SamplingParams
        from vllm.v1.worker.gpu.sample import logprob, prompt_logprob

        from labeler.teacher.vllm.capture import given_capture, installing
        from labeler.teacher.vllm.capture.given_arguments import given_arguments

        rng = np.random.default_rng(3)
        self.layout = ColumnLayout(4, (1.0, 2.0))
        self.logits = {name: rng.normal(0, 3, (9, 300)).astype(np.float32) for name in "ab"}
        self.tokens = {name: rng.integers(0, 300, 9) for name in "ab"}
        self.given = {
            name: np.stack([rng.choice(300, 4, replace=False) for _ in range(9 - prompt_length)])
            for name in "ab"
        }
        self.worker: Any = prompt_logprob.PromptLogprobsWorker(2, torch.device("cpu"), "raw_logits")
        reduce = None
        if is_given:
            model = SimpleNamespace(head_dtype=torch.bfloat16, get_vocab_size=lambda: 300)
            runner = SimpleNamespace(
                prompt_logprobs_worker=self.worker, device=torch.device("cpu"), model_config=model
            )
            reduce = given_capture.install(runner, "v2", self.layout).reduce
        wrapped = installing.wrap_v2(logprob.compute_topk_scores, self.layout, reduce)
        monkeypatch.setattr(prompt_logprob, "compute_topk_scores", wrapped)
        self._parameters = {}
        for name in "ab":
            ids = self.given[name] if is_given else None
            tokens = self.tokens[name]
            prompt = TokenizedPrompt(
                name, tokens[:prompt_length], tokens[prompt_length:], prompt_length, given_ids_NK=ids
            )
            arguments = given_arguments(prompt)
            self._parameters[name] = SamplingParams(
                prompt_logprobs=self.layout.num_logprobs, extra_args=arguments
            )
        self._module, self._torch, self._patch = prompt_logprob, torch, monkeypatch

    def add(self, name: str) -> None:
        self.worker.add_request(name, "ab".index(name), self._parameters[name])

    def step(self, spans: dict[str, tuple[int, int]], num_written: int = 0) -> dict[str, Any]:
        """Compute these positions of each; requests have written so many tokens before they came here."""
        sizes = [stop - start for start, stop in spans.values()]
        batch = SimpleNamespace(
            req_ids=list(spans),
            idx_mapping_np=np.array(["ab".index(name) for name in spans]),
            idx_mapping=None,
            query_start_loc=None,
            query_start_loc_np=np.concatenate([[0], np.cumsum(sizes)]),
            num_computed_prefill_tokens_np=np.array([start for start, _ in spans.values()]),
            num_scheduled_tokens=np.array(sizes),
            prefill_len_np=np.full(len(spans), 9 + num_written),
            num_tokens=sum(sizes),
        )
        rows = np.concatenate([self.logits[name][slice(*span)] for name, span in spans.items()])
        ids = np.concatenate([np.append(self.tokens[n], 0)[a + 1 : b + 1] for n, (a, b) in spans.items()])
        self._patch.setattr(
            self._module, "get_prompt_logprobs_token_ids", lambda *_: self._torch.as_tensor(ids)
        )
        return self.worker.compute_prompt_logprobs(
            lambda x: x, self._torch.as_tensor(rows), batch, None, None, np.full(2, 9)
        )

    def rows(self, tensors: Any, first: int = 0) -> LabelRows:
        ids_NC, values_NC, ranks_N = (tensor.numpy()[first:] for tensor in tensors[:3])
        return rows_from_columns(CapturedColumns(ids_NC, values_NC, ranks_N), self.layout, 300)
