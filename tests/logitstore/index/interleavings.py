"""Two actors on one store, stopped and continued at single requests, in every order with few changes of turn.

A random schedule rarely stops an actor between the two requests that matter. Here every place is tried: the
first actor makes so many requests, the second so many, then the first all that it has left, then the second,
or the second has died. An actor is a thread, of which one runs at a time.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.schedules.lossy_objects import Fault, LossyBackend, Memory
from logitstore.errors import ObjectStoreError, StoreChangedError
from logitstore.objects.opening import ObjectInfo

ACTORS = ("first", "second")
LIMIT_SEC = 60.0
"""A request takes microseconds: whoever waits so long waits for ever."""
ANSWERS: tuple[Fault, ...] = ("none", "lost reply", "lost reply, tried again")
"""To the request after which the turn changes: the reply comes, does not, or is that of a second try."""


class DiedError(BaseException):
    """The actor's process was killed: nothing of it may catch this."""


@dataclass(frozen=True, slots=True)
class Order:
    """Who makes how many requests, and what becomes of the first actor's last one before the turn changes."""

    first: int
    answer: Fault
    second: int | None
    """None: all."""
    first_dies_after: int | None = None
    """So many requests later; None: it makes all that it has left."""
    second_dies: bool = False

    @property
    def is_undisturbed(self) -> bool:
        """Whether nobody died and every request was answered."""
        return self.answer == "none" and self.first_dies_after is None and not self.second_dies


class Names:
    """Stands for `secrets.token_hex`: by actor and number, so that equal ends of two runs are equal."""

    def __init__(self) -> None:
        self._drawn: Counter[str] = Counter()

    def begin_run(self) -> None:
        for actor in ACTORS:
            self._drawn[actor] = 0

    def draw(self, num_bytes: int) -> str:
        actor = threading.current_thread().name
        self._drawn[actor] += 1
        number = self._drawn[actor] * 10 + (1 + ACTORS.index(actor) if actor in ACTORS else 0)
        return f"{number:0{2 * num_bytes}x}"


class Actor:
    """A thread that waits before each request to a store until it is let go on."""

    def __init__(self, name: str, acts: Callable[[], None]) -> None:
        self.num_requests = 0
        self.ended = False
        self.answer: Fault = "none"
        """To the next request."""
        self.unsure: ObjectStoreError | StoreChangedError | None = None
        """What it ended with, if it does not know what became of its work."""
        self._died = False
        self._error: BaseException | None = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(acts,), daemon=True, name=name)

    def _run(self, acts: Callable[[], None]) -> None:
        try:
            self._go.acquire()
            acts()
        except DiedError:
            pass
        except (ObjectStoreError, StoreChangedError) as error:
            self.unsure = error
        except BaseException as error:  # noqa: BLE001 - raised again by `go_on`, in the test's thread
            self._error = error
        finally:
            self.ended = True
            self._stopped.release()

    def wait(self) -> Fault:
        """Called by the actor before a request: what shall become of it."""
        self._stopped.release()
        self._go.acquire()
        if self._died:
            raise DiedError
        self.num_requests += 1
        answer, self.answer = self.answer, "none"
        return answer

    def start(self) -> None:
        """Up to the first request."""
        self._thread.start()
        self._step()

    def go_on(self, num_requests: int | None = None, answer: Fault = "none") -> None:
        """Make so many requests, or all; the last of them gets that answer."""
        while not self.ended and num_requests != 0:
            if num_requests is not None:
                num_requests -= 1
                self.answer = answer if num_requests == 0 else "none"
            self._step()

    def die(self) -> None:
        self._died = True
        self.go_on()

    def _step(self) -> None:
        self._go.release()
        assert self._stopped.acquire(timeout=LIMIT_SEC), "an actor waits for ever"
        if self._error is not None:
            raise self._error


class TurnBackend(LossyBackend):
    """Asks the actor before each request whose order matters; shards and segments are never changed."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory, random.Random(0), 0.0)
        self.actor: Actor | None = None

    def _wait(self) -> Fault:
        return "none" if self.actor is None else self.actor.wait()

    def get_with_etag(self, name: str) -> tuple[bytes, str]:
        self._wait()
        return super().get_with_etag(name)

    def get_many(self, names: list[str], max_bytes: int) -> list[bytes | None]:
        self._wait()
        return super().get_many(names, max_bytes)

    def list(self, prefix: str) -> list[ObjectInfo]:
        self._wait()
        return super().list(prefix)

    def _change(self, change: Callable[[], bool], share: float | None = None) -> bool:
        answer = self._wait()
        changed = change()
        if answer == "lost reply":
            raise ObjectStoreError("the reply was lost, on purpose")
        return changed and answer != "lost reply, tried again"


def orders(num_first: int, num_second: int, num_changes: int, *, faults: bool) -> Iterator[Order]:
    """All with one or two changes of turn, where the actors make so many requests if nobody disturbs them."""
    for first in range(num_first + 1):
        for answer in ANSWERS if faults and first else ANSWERS[:1]:
            yield Order(first, answer, None)
            for second in range(1, num_second) if num_changes == 2 else ():
                yield Order(first, answer, second)
                yield Order(first, answer, second, second_dies=True)
        for more in range(num_first - first) if num_changes == 2 else ():
            yield Order(first, "none", None, first_dies_after=more)


def run_in_order(first: Actor, second: Actor, order: Order) -> None:
    """Both actors from their start to their end, or to their death."""
    first.start()
    first.go_on(order.first, order.answer)
    second.start()
    second.go_on(order.second)
    first.go_on(order.first_dies_after)
    if order.first_dies_after is not None:
        first.die()
    if order.second_dies:
        second.die()
    second.go_on()
