"""The requests that label prompts, in the order in which a server is asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from labeler.errors import PromptError
from labeler.records import TokenizedPrompt


@dataclass(frozen=True, slots=True)
class Work:
    """One request to make."""

    prompt: TokenizedPrompt
    sample_index: int
    is_second_round: bool = False
    """Whether the server has failed at it before, as often as `teacher.api.tries` allows."""


class WorkQueue:
    """Those of prompts as they are drawn; after all of them those at which the server has failed."""

    def __init__(
        self,
        prompts: Iterable[TokenizedPrompt],
        num_samples: int,
        refused: Callable[[TokenizedPrompt], PromptError | None],
    ) -> None:
        self._drawn = iter(prompts)
        self._num_samples = num_samples
        self._refused = refused
        self._waiting: deque[Work] = deque()
        self._failed: deque[Work] = deque()

    def next(self) -> Work | PromptError | None:
        """What to ask next, or why a prompt is not asked; None while there is nothing."""
        if not self._waiting:
            prompt = next(self._drawn, None)
            if prompt is None:
                return self._failed.popleft() if self._failed else None
            if (error := self._refused(prompt)) is not None:
                return error
            self._waiting.extend(Work(prompt, index) for index in range(self._num_samples))
        return self._waiting.popleft()

    def put_back(self, work: Work) -> None:
        """Ask it once more, after all others: the server may have got over what it failed at."""
        self._failed.append(replace(work, is_second_round=True))
