"""Requests on their way through a vLLM engine: handed over as it has room, made again, or lost with it.

Shape legend: T tokens.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from labeler.errors import PromptError, TeacherDiedError
from labeler.records import TokenizedPrompt
from labeler.teacher.engine_sizes import QUEUED_BATCHES
from labeler.teacher.vllm.requests import Requests, Work, again, request_error
from logitstore.records import LabeledSequence

if TYPE_CHECKING:
    from labeler.teacher.vllm.machines import Followers

logger = logging.getLogger(__name__)


class Preemptions:
    """What was said so far of the requests that an engine threw out of its KV cache and computed again.

    vLLM begins such a request anew. What it had scored is written over (V1) or forgotten with it (V2), rows
    of tokens that it had sampled are kept, and `Requests` counts rows and compares their tokens. So nothing
    is lost or doubled but time.
    """

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


class RequestFeed:
    """Keeps one engine busy until it dies."""

    def __init__(self, engine: Any, followers: Followers | None) -> None:
        self._engine: Any = engine
        self._followers = followers
        self._dead: str | None = None
        """Why the engine takes no request any more."""
        self._next_request = 0
        self._preemptions = Preemptions()

    def end(self, reason: str) -> None:
        """Take no request any more, and let go of the engine."""
        self._dead, self._engine = self._dead or reason, None

    def run(
        self, requests: Requests, prompts: Iterator[TokenizedPrompt], waiting: deque[Work]
    ) -> Iterator[LabeledSequence | PromptError]:
        """The results of the requests that wait and of those that the prompts make, as they end."""
        running: dict[str, Work] = {}
        try:
            yield from self.hand_over(requests, prompts, waiting, running)
            while running:
                for output in self._step():
                    work = running.pop(output.request_id)
                    result = requests.result(work, output)
                    if isinstance(result, Work):
                        waiting.appendleft(result)
                    else:
                        yield result
                yield from self.hand_over(requests, prompts, waiting, running)
            self._say_preemptions(requests)
        finally:
            if running and self._dead is None:
                self._engine.abort_request(list(running))

    def hand_over(
        self,
        requests: Requests,
        prompts: Iterator[TokenizedPrompt],
        waiting: deque[Work],
        running: dict[str, Work],
    ) -> Iterator[PromptError]:
        """Hand requests over until the engine has enough to do; those that are refused come back."""
        # A decoding request keeps its place for long but has its prompt behind it: only the count bounds it.
        tokens = sum(len(work.tokens_T) for work in running.values() if work.stage == "score")
        while len(running) < requests.limits.max_requests:
            if running and tokens >= QUEUED_BATCHES * requests.limits.step_tokens:
                return
            if not waiting:
                prompt = next(prompts, None)
                if prompt is None:
                    return
                error = requests.refused(prompt)
                if error is not None:
                    yield error
                    continue
                waiting.extend(requests.works_of(prompt))
            work = waiting.popleft()
            request_id = f"{self._next_request}"
            self._next_request += 1
            refused = self._add(requests, request_id, work)
            if isinstance(refused, Work):
                waiting.appendleft(refused)
                continue
            if refused is not None:
                yield refused
                continue
            running[request_id] = work
            tokens += len(work.tokens_T) if work.stage == "score" else 0

    def _add(self, requests: Requests, request_id: str, work: Work) -> Work | PromptError | None:
        """Hand one request over; what to do instead where vLLM will not have it."""
        from vllm import exceptions

        self._raise_if_dead()
        prompt = {"prompt_token_ids": work.tokens_T.tolist()}
        try:
            self._engine.add_request(request_id, prompt, requests.parameters(work))
        except exceptions.RetryableRequestError as error:  # no fault of the request's
            return again(work, str(error))
        except (exceptions.VLLMClientError, ValueError) as error:
            return request_error(work, f"vLLM refuses it: {error}", "bad_prompt")
        except Exception as error:
            raise self._died(error) from error
        return None

    def _step(self) -> list[Any]:
        """One step of the engine; the requests that finished in it."""
        self._raise_if_dead()
        try:
            return [output for output in self._engine.step() if output.finished]
        except Exception as error:
            raise self._died(error) from error

    def _say_preemptions(self, requests: Requests) -> None:
        if requests.layout is None or self._dead is not None:
            return  # through the public API nothing of ours is in the workers
        try:
            self._preemptions.say_new(self._engine.collective_rpc("penumbra_preemptions"))
        except Exception as error:
            raise self._died(error) from error

    def _died(self, error: Exception) -> TeacherDiedError:
        """EngineDeadError, or in-process whatever the engine stumbled over: no request survives either."""
        lost = self._followers.failure() if self._followers is not None else None
        self._dead = lost or f"{type(error).__name__}: {error}"
        return TeacherDiedError(f"the engine died ({self._dead}); start a new teacher")

    def _raise_if_dead(self) -> None:
        if self._dead is not None:
            raise TeacherDiedError(f"the engine is gone ({self._dead}); start a new teacher")
