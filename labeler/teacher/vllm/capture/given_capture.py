"""Runs inside vLLM's workers: rows at ids that were given, with exact normalisers and tails.

The functions that `installing.py` replaces see rows of logits and not whose they are. So the function that
calls them is watched: it is known from the step which rows it will score, in which order, and the ids that
came with their requests are laid out like that before it runs.

- V1 runner: `_get_prompt_logprobs_dict` scores the prompts of its requests one after the other;
- V2 runner: `PromptLogprobsWorker.compute_prompt_logprobs` scores all tokens of the step.

Ids, logits and the actual token's id of a row leave the worker side by side, and the front end compares both
ids with what it sent: a row that got another's ids is found and not stored.

Shape legend: N rows, B rows of a block, V vocabulary, K stored entries, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from labeler.teacher.known_vllm import Runner
from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.vllm.capture.given_arguments import given_rows
from labeler.teacher.vllm.capture.reduction import (
    LogitsForm,
    ReducedRows,
    Reduction,
    block_rows,
    fill_masses,
    finish_rows,
    kernel_fault,
)

ReduceAtIds = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, ColumnLayout], ReducedRows]
"""Logits [N, V], the actual tokens' ids [N], the given ids [N, K] (-1 for none) and the layout to columns."""


def install(model_runner: Any, runner: Runner, layout: ColumnLayout) -> Reduction:
    """Watch the runner; by what its rows are to be reduced from then on."""
    reduce, note = choose_at_ids(LogitsForm.of(model_runner, runner), layout)
    step = StepIds(layout.top_k, reduce)
    if runner == "v1":
        watch_v1(model_runner, step)
    elif model_runner.prompt_logprobs_worker is not None:  # the last stage of a pipeline alone has one
        watch_v2(model_runner.prompt_logprobs_worker, step)
    return Reduction(step.reduce, f"{note}, at given ids")


def choose_at_ids(form: LogitsForm, layout: ColumnLayout) -> tuple[ReduceAtIds, str]:
    """As `reduction.choose_reduction`, for rows at given ids."""
    if form.device.type != "cuda":
        return reduce_at_ids, "torch"
    label_ids_N = torch.arange(4, device=form.device) % form.vocab_size
    spread = max(1, form.vocab_size // layout.top_k)
    given_NK = (torch.arange(layout.top_k, device=form.device) * min(spread, 3)).repeat(4, 1)
    given_NK[1, layout.top_k // 2 :] = -1

    def by_kernel(logits_NV: torch.Tensor) -> ReducedRows:
        from labeler.teacher.vllm.capture import capture_kernel

        return capture_kernel.reduce_at_ids(logits_NV, label_ids_N, given_NK, layout)

    fault = kernel_fault(
        form, by_kernel, lambda logits_NV: reduce_at_ids(logits_NV, label_ids_N, given_NK, layout)
    )
    if fault is not None:
        return reduce_at_ids, f"torch, because the Triton kernels {fault}"
    from labeler.teacher.vllm.capture import capture_kernel

    return capture_kernel.reduce_at_ids, "triton"


class StepIds:
    """The ids of the rows that a step scores, in the order in which it does."""

    def __init__(self, top_k: int, reduce: ReduceAtIds | None = None) -> None:
        """`reduce` is `reduce_at_ids` unless given."""
        self.top_k = top_k
        self._reduce = reduce or reduce_at_ids
        self._rows_NK = np.empty((0, top_k), np.int32)

    def expect(self, parts: list[np.ndarray]) -> None:
        """Lay out a step's ids; those of the step before are forgotten."""
        self._rows_NK = np.concatenate([np.empty((0, self.top_k), np.int32), *parts])

    def reduce(self, logits_NV: torch.Tensor, label_ids_N: torch.Tensor, layout: ColumnLayout) -> ReducedRows:
        """The next rows of the step, as `reduction.Reduce`."""
        num_rows = len(logits_NV)
        if num_rows > len(self._rows_NK):
            raise RuntimeError(
                f"{num_rows} rows are scored and ids are left for {len(self._rows_NK)}: this vLLM scores "
                "other rows than were foreseen; remove labels.given, and report its version"
            )
        given_NK = torch.from_numpy(self._rows_NK[:num_rows])
        if logits_NV.is_cuda:
            # Out of pinned memory, so that nothing waits for what the GPU has still to do.
            given_NK = given_NK.pin_memory()
        given_NK = given_NK.to(logits_NV.device, non_blocking=True)
        self._rows_NK = self._rows_NK[num_rows:]
        return self._reduce(logits_NV, label_ids_N, given_NK, layout)


def watch_v1(runner: Any, step: StepIds) -> None:
    """Shadow the V1 runner's method; calling it again takes another `step`."""
    original = type(runner)._get_prompt_logprobs_dict  # noqa: SLF001

    def get_prompt_logprobs_dict(hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
        parts = []
        for request_id in runner.num_prompt_logprobs:
            request, num_tokens = runner.requests[request_id], num_scheduled_tokens.get(request_id)
            if num_tokens is None or request.prompt_token_ids is None:
                continue
            start = request.num_computed_tokens
            stop = min(start + num_tokens, len(request.prompt_token_ids) - 1)
            parts.append(given_rows(request.sampling_params.extra_args, start, stop, step.top_k))
        step.expect(parts)
        return original(runner, hidden_states, num_scheduled_tokens)

    runner._get_prompt_logprobs_dict = get_prompt_logprobs_dict  # noqa: SLF001


def watch_v2(worker: Any, step: StepIds) -> None:
    """Shadow the methods of the V2 runner's `PromptLogprobsWorker`; calling it again takes another `step`."""
    kind = type(worker)
    arguments: dict[str, Mapping[str, Any]] = {}

    def add_request(req_id: str, req_idx: int, sampling_params: Any) -> None:
        if sampling_params.extra_args:
            arguments[req_id] = sampling_params.extra_args
        kind.add_request(worker, req_id, req_idx, sampling_params)

    def remove_request(req_id: str) -> None:
        arguments.pop(req_id, None)
        kind.remove_request(worker, req_id)

    def compute_prompt_logprobs(
        logits_fn: Any, hidden_states: torch.Tensor, input_batch: Any, *others: Any
    ) -> Any:
        begins = input_batch.query_start_loc_np
        parts = []
        for place, request_id in enumerate(input_batch.req_ids):
            start = int(input_batch.num_computed_prefill_tokens_np[place])
            stop = start + int(begins[place + 1] - begins[place])
            parts.append(given_rows(arguments.get(request_id), start, stop, step.top_k))
        num_more = input_batch.num_tokens - sum(map(len, parts))
        step.expect([*parts, given_rows(None, 0, num_more, step.top_k)])
        return kind.compute_prompt_logprobs(worker, logits_fn, hidden_states, input_batch, *others)

    worker.add_request = add_request
    worker.remove_request = remove_request
    worker.compute_prompt_logprobs = compute_prompt_logprobs


def reduce_at_ids(
    logits_NV: torch.Tensor, label_ids_N: torch.Tensor, given_NK: torch.Tensor, layout: ColumnLayout
) -> ReducedRows:
    """The columns of rows at given ids (int32, -1 for none), by falling logit.

    The tail is summed directly, with the given ids masked out, around its own largest logit: given ids may
    be unlikely ones, and the tail nearly everything or nearly nothing.
    """
    num_rows = len(logits_NV)
    values_NC = logits_NV.new_empty((num_rows, layout.num_columns), dtype=torch.float32)
    token_ids_NC = logits_NV.new_empty((num_rows, layout.num_columns), dtype=torch.int32)
    ranks_N = logits_NV.new_empty(num_rows, dtype=torch.int32)
    size = block_rows(logits_NV)
    for start in range(0, num_rows, size):
        block = slice(start, start + size)
        logits_BV, label_B1 = logits_NV[block].float(), label_ids_N[block].long().unsqueeze(1)
        _reduce_block(
            logits_BV, label_B1, given_NK[block].long(), layout, token_ids_NC[block], values_NC[block]
        )
        ranks_N[block] = (logits_BV >= values_NC[block, :1]).sum(dim=1, dtype=torch.int32)
    return finish_rows(token_ids_NC, values_NC, ranks_N, layout)


def _reduce_block(
    logits_BV: torch.Tensor,
    label_ids_B1: torch.Tensor,
    given_BK: torch.Tensor,
    layout: ColumnLayout,
    token_ids_BC: torch.Tensor,
    values_BC: torch.Tensor,
) -> None:
    top_k = layout.top_k
    real_BK = given_BK >= 0
    head_BK = logits_BV.gather(1, given_BK.clamp_min(0)).masked_fill(~real_BK, -torch.inf)
    head_BK, order_BK = head_BK.sort(dim=1, descending=True, stable=True)
    token_ids_BC[:, :1], values_BC[:, :1] = label_ids_B1, logits_BV.gather(1, label_ids_B1)
    token_ids_BC[:, 1 : top_k + 1] = given_BK.gather(1, order_BK).clamp_min(0)
    values_BC[:, 1 : top_k + 1] = head_BK
    # A place without an id takes out one of the row's once more, which is out already.
    taken_BK = torch.where(real_BK, given_BK, given_BK.amax(dim=1, keepdim=True).clamp_min(0))
    outside_BV = logits_BV.scatter(1, taken_BK, -torch.inf)
    largest_B1 = outside_BV.amax(dim=1, keepdim=True).nan_to_num(neginf=0.0)
    outside_BV -= largest_B1
    for index, temperature in enumerate(layout.temperatures):
        log_tail_B = (outside_BV / temperature).exp_().sum(dim=1).log()
        log_head_B = torch.logsumexp((head_BK - largest_B1) / temperature, dim=1)
        fill_masses(values_BC, layout, index, log_head_B, log_tail_B, largest_B1[:, 0] / temperature)
