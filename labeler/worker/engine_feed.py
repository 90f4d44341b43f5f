"""Units through one teacher on a thread of its own, the next one flowing in while the last one ends.

A unit's last responses leave an engine half empty; where another unit waits, its prompts take the room.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from labeler.errors import EngineDiedError, PromptError, TeacherDiedError
from labeler.records import TokenizedPrompt
from labeler.teacher.protocol import Teacher, longest_first
from logitstore.records import LabeledSequence


@dataclass(slots=True, eq=False)
class FedUnit:
    """A unit on its way through the engine, and what has come out of it."""

    lease_id: int
    prompts: deque[TokenizedPrompt]
    """Not yet in the engine, longest first."""
    missing: int
    """Results still to come."""
    sequences: list[LabeledSequence] = field(default_factory=list)
    errors: list[PromptError] = field(default_factory=list)
    engine_sec: float = 0.0
    """The engine's time since the completion before, so that the units' times add up to the engine's."""
    done: Future[bool] = field(default_factory=Future)
    """True once it is complete, False if it was given back untouched."""

    @classmethod
    def of(cls, lease_id: int, prompts: Sequence[TokenizedPrompt], num_samples: int) -> FedUnit:
        """`num_samples` is the number of sequences that the teacher makes of a prompt."""
        return cls(lease_id, deque(longest_first(prompts)), len(prompts) * num_samples)


class EngineFeed:
    """Runs the teacher's `label` on a thread of its own over all units handed to it."""

    def __init__(
        self, load: Callable[[], Teacher], num_samples: int, on_result: Callable[[LabeledSequence], None]
    ) -> None:
        """Load the teacher. `on_result` is called on its thread with every sequence."""
        self._num_samples = num_samples
        self._on_result = on_result
        self._lock = threading.Lock()
        self._waiting: deque[FedUnit] = deque()
        self._inside: dict[int, FedUnit] = {}
        """Units begun and not complete, by lease, oldest first."""
        self._unit_of: dict[str, FedUnit] = {}
        """By record, of those in the engine."""
        self._leaving = False
        self._death: EngineDiedError | None = None
        self._completed_sec = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self.teacher = self._thread.submit(load).result()

    @property
    def in_engine(self) -> tuple[int, ...]:
        """Leases whose prompts the engine holds, oldest first; the last ones, once it has died."""
        with self._lock:
            return self._death.culprits if self._death is not None else tuple(self._inside)

    def run(self, unit: FedUnit) -> bool:
        """Label a unit; False if the feed was told to leave before. May be called from several threads.

        Raises EngineDiedError: the teacher is gone for good.
        """
        with self._lock:
            self._waiting.append(unit)
        self._thread.submit(self._pump)
        return unit.done.result()

    def leave(self) -> None:
        """Begin no further unit."""
        with self._lock:
            self._leaving = True

    def close(self) -> None:
        """Free the engine once the units in it are complete."""
        self.leave()
        self._thread.submit(self.teacher.close).result()

    def _pump(self) -> None:
        """On the teacher's thread: label until no unit waits."""
        if self._death is None:
            self._completed_sec = time.perf_counter()
            try:
                for result in self.teacher.label(_Drawn(self._next_prompt)):
                    self._take(result)
            except TeacherDiedError as error:
                with self._lock:
                    self._death = EngineDiedError(f"{type(error).__name__}: {error}", tuple(self._inside))
            except Exception as error:  # noqa: BLE001
                self._fail(list(self._inside.values()), error)
        if self._death is not None:
            with self._lock:
                units = [*self._inside.values(), *self._waiting]
                self._waiting.clear()
            self._fail(units, self._death)

    def _next_prompt(self) -> TokenizedPrompt | None:
        """The next prompt of the unit begun last, else of the next unit; None if none waits now."""
        while True:
            with self._lock:
                unit = next(reversed(self._inside.values()), None)
                if unit is None or not unit.prompts:
                    unit = self._begin_next()
                if unit is None:
                    return None
                if unit.prompts:
                    prompt = unit.prompts.popleft()
                    self._unit_of[prompt.record_id] = unit
                    return prompt
            self._complete(unit)  # It had no prompt at all.

    def _begin_next(self) -> FedUnit | None:
        while self._waiting:
            unit = self._waiting.popleft()
            if not self._leaving:
                self._inside[unit.lease_id] = unit
                return unit
            unit.done.set_result(False)
        return None

    def _take(self, result: LabeledSequence | PromptError) -> None:
        unit = self._unit_of[result.record_id]
        if isinstance(result, PromptError):
            unit.errors.append(result)
            unit.missing -= self._num_samples if result.sample_index is None else 1
        else:
            unit.sequences.append(result)
            unit.missing -= 1
            self._on_result(result)
        if unit.missing == 0:
            self._complete(unit)

    def _complete(self, unit: FedUnit) -> None:
        now = time.perf_counter()
        unit.engine_sec, self._completed_sec = now - self._completed_sec, now
        self._forget(unit)
        unit.done.set_result(True)

    def _fail(self, units: list[FedUnit], error: Exception) -> None:
        for unit in units:
            self._forget(unit)
            unit.done.set_exception(error)

    def _forget(self, unit: FedUnit) -> None:
        with self._lock:
            self._inside.pop(unit.lease_id, None)
            self._unit_of = {name: other for name, other in self._unit_of.items() if other is not unit}


class _Drawn:
    """An iterator that may have more again after it had none."""

    def __init__(self, draw: Callable[[], TokenizedPrompt | None]) -> None:
        self._draw = draw

    def __iter__(self) -> _Drawn:
        return self

    def __next__(self) -> TokenizedPrompt:
        prompt = self._draw()
        if prompt is None:
            raise StopIteration
        return prompt
