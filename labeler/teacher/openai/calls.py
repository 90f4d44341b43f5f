"""Requests to an OpenAI-compatible server: paced, tried again within bounds, refusals told apart."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from labeler.config.loading import TeacherConfig
from labeler.errors import LabelerError, RejectError
from labeler.records import Billed
from labeler.teacher.openai.refusals import Refusal, refusal_by_status, refusal_within
from logitstore.common.terminal import first_line

if TYPE_CHECKING:
    from openai import OpenAI

FIRST_PAUSE_SEC = 0.5
NO_CONNECTION = ("ConnectError", "ConnectTimeout", "PoolTimeout")

Answer = TypeVar("Answer")


class ServerFailedError(LabelerError, RuntimeError):
    """The server did not answer as it must, however often it was asked: the unit is tried again later."""


class RequestFailedError(ServerFailedError):
    """The server failed at this request in every try, and never for being busy, late or out of reach: it may
    answer others."""


class StillMalformedError(RequestFailedError):
    """The last answer too was none to the request: the server may be one that cannot do what is asked."""


class MalformedAnswerError(LabelerError, ValueError):
    """An answer that is no answer to the request; it is asked again."""


class RefusedError(RejectError):
    """The server will not take this one request; asking again changes nothing."""


@dataclass(slots=True)
class _Bucket:
    """Amounts that may begin within a minute, refilled evenly; 0 is no limit."""

    per_minute: int
    free_at_sec: float = 0.0

    def wait_sec(self, amount: int, now_sec: float) -> float:
        """Take `amount`; how long to wait for it."""
        if not self.per_minute:
            return 0.0
        begin_sec = max(self.free_at_sec, now_sec)
        self.free_at_sec = begin_sec + 60.0 * amount / self.per_minute
        return begin_sec - now_sec


class Caller:
    """Makes requests from several threads. `closing` ends every wait."""

    def __init__(self, client: OpenAI, config: TeacherConfig) -> None:
        self._client = client
        self._api = config.api
        self._lock = threading.Lock()
        self._requests = _Bucket(config.api.requests_per_minute)
        self._tokens = _Bucket(config.api.tokens_per_minute)
        self.closing = threading.Event()
        self.num_tries = 0
        """Requests made, repeated ones included."""
        self.billed = Billed()

    def complete(
        self,
        request: dict[str, Any],
        num_tokens: int,
        read: Callable[[Any], Answer],
        tries: int | None = None,
    ) -> Answer:
        """What `read` makes of the answer to one completion of `num_tokens`, of its messages or its prompt.

        Raises RefusedError for a request that the server will never take; after `teacher.api.tries` tries
        RequestFailedError, or ServerFailedError if one of them was no fault of the request; ServerFailedError
        at once where no try can help (key, name of the model, money).
        """
        import openai

        tries = tries or self._api.tries
        reason, failures = "nothing was tried", list[type[ServerFailedError]]()
        for number in range(tries):
            self._pace(num_tokens)
            asked_pause_sec = 0.0
            try:
                answer = self._billed_answer(request)
                if not isinstance(answer, Refusal):
                    return _read(answer, read)
                reason, asked_pause_sec = self._why(answer), answer.pause_sec
                failures.append(ServerFailedError if answer.is_later else RequestFailedError)
            except (openai.APIError, MalformedAnswerError, ValueError) as error:
                # Connections, timeouts, and bodies that are no JSON or none of this API.
                if isinstance(error, RefusedError):
                    raise
                reason = f"{type(error).__name__}: {first_line(error)}"
                if isinstance(error, openai.APITimeoutError):
                    reason += f" (teacher.api.timeout_sec = {self._api.timeout_sec:g})"
                failures.append(_kind_of(error))
            if number + 1 < tries:
                self._pause(number, asked_pause_sec)
        raise (ServerFailedError if ServerFailedError in failures else failures[-1])(
            f"the server at {self._api.base_url} failed {tries} times at one request, the last "
            f"with {reason}; look at the server, or raise teacher.api.tries"
        )

    def _billed_answer(self, request: dict[str, Any]) -> Any:
        """One try: the answer, or a `Refusal`. What the server says that it took and wrote is counted,
        whatever comes of the answer."""
        import openai

        self._count(Billed(num_on_the_way=1))
        try:
            ask = self._client.chat.completions if "messages" in request else self._client.completions
            answer = ask.create(**request)
            refusal = refusal_within(answer)
        except openai.APIStatusError as error:
            answer, refusal = None, refusal_by_status(error)
        except BaseException as error:
            self._count(Billed(num_on_the_way=-1, num_lost=0 if _never_arrived(error) else 1))
            raise
        usage = getattr(answer, "usage", None)
        given, written = (getattr(usage, f"{kind}_tokens", None) for kind in ("prompt", "completion"))
        if isinstance(given, int) and isinstance(written, int | None):
            self._count(Billed(given, written or 0, num_answers=1, num_on_the_way=-1))
        else:
            maybe_billed = refusal is None or refusal.is_maybe_billed
            self._count(Billed(num_lost=1 if maybe_billed else 0, num_on_the_way=-1))
        return answer if refusal is None else refusal

    def _count(self, more: Billed) -> None:
        with self._lock:
            self.billed += more

    def _pace(self, num_tokens: int) -> None:
        with self._lock:
            now = time.monotonic()
            wait_sec = max(self._requests.wait_sec(1, now), self._tokens.wait_sec(num_tokens, now))
            self.num_tries += 1
        self._sleep(wait_sec)

    def _pause(self, number: int, asked_sec: float) -> None:
        """Longer after each try, of random length so that many do not come back together."""
        own_sec = FIRST_PAUSE_SEC * 2**number * random.uniform(0.5, 1.0)
        self._sleep(min(max(own_sec, asked_sec), self._api.longest_pause_sec))

    def _sleep(self, seconds: float) -> None:
        if self.closing.wait(seconds) or self.closing.is_set():
            raise ServerFailedError("the teacher was closed; its units are labeled by another")

    def _why(self, refusal: Refusal) -> str:
        """Why a try failed that may be made again; raises for what may not."""
        server = f"the server at {self._api.base_url}"
        if refusal.is_spent:
            remedy = "the account's money is spent; what is labeled stays"
            raise ServerFailedError(f"{server} refuses with {refusal}; {remedy}")
        if refusal.may_be_tried_again:
            return str(refusal)
        if refusal.is_of_filter:
            raise RefusedError(f"the server's filter refuses it: {refusal.said}", "content_filter")
        if refusal.status in (401, 403):
            remedy = f"set the key in the environment variable {self._api.key_variable}"
            raise ServerFailedError(f"{server} refuses with {refusal}; {remedy}")
        if refusal.status == 404:
            raise ServerFailedError(
                f"{server} has no such thing ({refusal.said}); check teacher.api.base_url and "
                "teacher.api.model"
            )
        if refusal.is_of_length:
            raise RefusedError(f"the server takes no prompt of that length: {refusal.said}", "too_long")
        raise RefusedError(f"the server refuses it with {refusal}", "bad_prompt")


def _read(answer: Any, read: Callable[[Any], Answer]) -> Answer:
    """Raises MalformedAnswerError also for what `read` looks for in vain: the client checks no form."""
    if isinstance(answer, str):
        raise MalformedAnswerError(f"the answer is no JSON but {answer!r:.80}; check teacher.api.base_url")
    try:
        return read(answer)
    except (AttributeError, TypeError, LookupError, OverflowError) as error:
        raise MalformedAnswerError(f"the answer is not of OpenAI's form ({error})") from None


def _kind_of(error: Exception) -> type[ServerFailedError]:
    """Whether the server failed at the request, or was late or out of reach for any."""
    import openai

    if isinstance(error, openai.APIConnectionError):  # timeouts too
        return ServerFailedError
    return StillMalformedError if isinstance(error, MalformedAnswerError) else RequestFailedError


def _never_arrived(error: BaseException) -> bool:
    """Whether no connection came about, so that the server did nothing.

    By name: which of httpx and httpx2 the client uses depends on its version, and a client that finds the
    other half imported, by another thread, fails.
    """
    cause = type(error.__cause__)
    return cause.__module__.partition(".")[0] in ("httpx", "httpx2") and cause.__name__ in NO_CONNECTION
