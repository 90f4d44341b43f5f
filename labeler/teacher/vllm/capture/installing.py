"""Runs inside vLLM's workers: adds exact normalisers and tail masses to the logprobs of every row.

vLLM returns the top entries of a row but nothing of what lies outside them. While the full logits exist,
one function per model runner reduces them to the rows that leave the worker:

- V1 runner: `Sampler.gather_logprobs(scores, num_logprobs, token_ids)`, shadowed on `runner.sampler`;
- V2 runner: `compute_topk_scores(logits, num_logprobs, sampled_token_ids, ...)`, replaced in its importers.

The replacement gives the same shapes, dtypes and order, with the layout of `labeler.teacher.label_rows` in
the columns, so request ids, positions, chunked prefill, preemption and tensor parallelism are vLLM's own.
Calls that ask for another number of entries, or for given ids, go to the original.

It is only installed where `labeler.teacher.known_vllm` knows the source of what is replaced.

Shape legend: N rows, C columns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from labeler.teacher.known_vllm import REPLACED, Runner, capture_refusal
from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.vllm.capture import given_capture
from labeler.teacher.vllm.capture.reduction import LogitsForm, Reduce, choose_reduction, reduce_logits

if TYPE_CHECKING:
    from vllm.v1.outputs import LogprobsTensors

V2_IMPORTERS = (
    "vllm.v1.worker.gpu.sample.sampler",
    "vllm.v1.worker.gpu.sample.prompt_logprob",
    "vllm.v1.worker.gpu.spec_decode.rejection_sampler",
)
"""Modules of the V2 runner that call `compute_topk_scores` by their own name for it."""
PREEMPTED = "penumbra_num_preempted"
"""The model runner's attribute with the number of requests since it was watched first."""


class CaptureExtension:
    """Mixed into vLLM's worker (`worker_extension_cls`); called through `collective_rpc`."""

    if TYPE_CHECKING:
        model_runner: Any
        use_v2_model_runner: bool

    def penumbra_install(self, top_k: int, temperatures: list[float], is_given: bool) -> dict[str, str]:
        """Install the capture for rows of this layout, at the ids that come with their requests if
        `is_given`. Calling it again replaces the layout."""
        import vllm

        watch_preemptions(self.model_runner)
        runner: Runner = "v2" if getattr(self, "use_v2_model_runner", False) else "v1"
        reason = capture_refusal(vllm.__version__, runner)
        if reason is None:
            layout = ColumnLayout(top_k, tuple(temperatures))
            if is_given:
                reduction = given_capture.install(self.model_runner, runner, layout)
            else:
                reduction = choose_reduction(LogitsForm.of(self.model_runner, runner), layout)
            if runner == "v1":
                install_v1(self.model_runner.sampler, layout, reduction.reduce)
            else:
                install_v2(layout, reduction.reduce)
            note = reduction.note
        else:
            note = "none"
        return {"runner": runner, "version": vllm.__version__, "refusal": reason or "", "reduction": note}

    def penumbra_preemptions(self) -> int:
        """Requests that were thrown out of the KV cache and computed again, since the first installation."""
        return getattr(self.model_runner, PREEMPTED)


def install_v1(sampler: Any, layout: ColumnLayout, reduce: Reduce | None = None) -> None:
    """Shadow the static method on the runner's sampler; `reduce` is `reduce_logits` unless given."""
    reduce = reduce or reduce_logits
    original = type(sampler).gather_logprobs

    def gather_logprobs(
        logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor
    ) -> LogprobsTensors:
        if num_logprobs != layout.num_logprobs:
            return original(logprobs, num_logprobs, token_ids)
        from vllm.v1.outputs import LogprobsTensors

        rows = reduce(logprobs, token_ids, layout)
        # int32 ids and ranks of the V1 runner; the caller copies them into buffers of that type.
        return LogprobsTensors(rows.token_ids_NC, rows.values_NC, rows.ranks_N)

    sampler.gather_logprobs = gather_logprobs


def install_v2(layout: ColumnLayout, reduce: Reduce | None = None) -> None:
    """Replace the function in the modules that imported it by name."""
    source = importlib.import_module(REPLACED["v2"][0])
    wrapped = wrap_v2(source.compute_topk_scores, layout, reduce)
    for name in V2_IMPORTERS:
        importlib.import_module(name).compute_topk_scores = wrapped  # type: ignore[attr-defined]


def wrap_v2(
    original: Callable[..., LogprobsTensors], layout: ColumnLayout, reduce: Reduce | None = None
) -> Callable[..., LogprobsTensors]:
    """The V2 runner's function, capturing where rows of `layout` are asked for."""
    reduce = reduce or reduce_logits

    def compute_topk_scores(
        logits: torch.Tensor,
        num_logprobs: int,
        sampled_token_ids: torch.Tensor,
        cu_num_logits: list[int] | torch.Tensor | None = None,
        logprob_token_ids_state: Any = None,
        expanded_idx_mapping: torch.Tensor | None = None,
        max_per_req_token_ids: int = 0,
        logits_mode: bool = False,
    ) -> LogprobsTensors:
        if num_logprobs != layout.num_logprobs or max_per_req_token_ids or not logits_mode:
            return original(
                logits,
                num_logprobs,
                sampled_token_ids,
                cu_num_logits,
                logprob_token_ids_state,
                expanded_idx_mapping,
                max_per_req_token_ids,
                logits_mode,
            )
        from vllm.v1.outputs import LogprobsTensors

        rows = reduce(logits, sampled_token_ids, layout)
        on_device = isinstance(cu_num_logits, torch.Tensor)
        return LogprobsTensors(
            logprob_token_ids=rows.token_ids_NC.to(torch.int64),
            logprobs=rows.values_NC,
            selected_token_ranks=rows.ranks_N.to(torch.int64),
            cu_num_generated_tokens=None if on_device else cu_num_logits,  # type: ignore[arg-type]
            cu_num_generated_tokens_tensor=cu_num_logits if on_device else None,  # type: ignore[arg-type]
        )

    return compute_topk_scores


def watch_preemptions(model_runner: Any) -> None:
    """Count requests thrown out, by what the scheduler sends with every step; once is enough for a runner."""
    if hasattr(model_runner, PREEMPTED):
        return
    setattr(model_runner, PREEMPTED, 0)
    original = model_runner.execute_model

    def execute_model(scheduler_output: Any, *others: Any, **options: Any) -> Any:
        num_more = len(scheduler_output.preempted_req_ids or ())
        setattr(model_runner, PREEMPTED, getattr(model_runner, PREEMPTED) + num_more)
        return original(scheduler_output, *others, **options)

    model_runner.execute_model = execute_model
