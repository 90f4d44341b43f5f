"""Requests that the engine threw out of its KV cache, to compute them once more: counted, and said.

vLLM computes such a request again from its beginning. What it had scored before is overwritten (V1) or
forgotten with the request (V2), rows of tokens that it had sampled are kept, and the front end compares the
number of rows and their tokens with what it asked for. So nothing is lost or doubled but time.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

COUNTER = "penumbra_num_preempted"
"""The model runner's attribute with the number of requests since it was watched first."""


def watch(model_runner: Any) -> None:
    """Count in a worker, from what the scheduler sends with every step. Calling it again changes nothing."""
    if hasattr(model_runner, COUNTER):
        return
    setattr(model_runner, COUNTER, 0)
    original = model_runner.execute_model

    def execute_model(scheduler_output: Any, *others: Any) -> Any:
        num_more = len(scheduler_output.preempted_req_ids or ())
        setattr(model_runner, COUNTER, getattr(model_runner, COUNTER) + num_more)
        return original(scheduler_output, *others)

    model_runner.execute_model = execute_model


class Preemptions:
    """What was said of one engine's preemptions so far."""

    def __init__(self) -> None:
        self._num_said = 0

    def say_new(self, counts: list[int]) -> None:
        """Log those that came since the last call. `counts` are the workers', who all see the same ones."""
        num_new = max(counts) - self._num_said
        if num_new <= 0:
            return
        self._num_said += num_new
        logger.warning(
            "the engine's KV cache was full: requests were thrown out and computed again (%d). Labels are as "
            "without it, time is lost: give the cache more memory (gpu_memory_utilization, on a CPU "
            "kv_cache_memory_bytes, in teacher.engine_args) or the engine fewer requests (max_num_seqs)",
            num_new,
        )
