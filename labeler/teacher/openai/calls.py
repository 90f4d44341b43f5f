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
from logitstore.common.terminal import first_line

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

FIRST_PAUSE_SEC = 0.5
TOO_LONG_WORDS = (
    "context length",
    "context size",
    "maximum context",
    "maximum allowed input",
    "max_model_len",
    "too long",
)
"""Words of OpenAI's, vLLM's, SGLang's and llama.cpp's servers."""
NO_CONNECTION = ("ConnectError", "ConnectTimeout", "PoolTimeout")
MAYBE_BILLED_STATUSES = (408, 500, 502, 504)
"""With which a server, or a gateway before it, ends a request that its model may have answered; other
refusals come before any work and are not billed."""
LATER_STATUSES = (408, 409, 425, 429, 502, 504, 529)
"""With which a server, or a gateway before it, says that it is busy, overloaded or out of reach: it would
take the same request at another time. Any other with Retry-After says so too."""
SPENT_CODES = ("insufficient_quota", "billing_hard_limit_reached")

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
                return read(self._billed_answer(request))
            except openai.APIStatusError as error:
                reason, asked_pause_sec = self._why(error), _retry_after_sec(error)
                failures.append(_kind_of(error))
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
        """One try. What the server says that it took and wrote is counted, whatever comes of the answer."""
        import openai

        self._count(Billed(num_on_the_way=1))
        try:
            ask = self._client.chat.completions if "messages" in request else self._client.completions
            answer = ask.create(**request)
        except openai.APIStatusError as error:
            maybe_billed = error.status_code in MAYBE_BILLED_STATUSES
            self._count(Billed(num_on_the_way=-1, num_lost=1 if maybe_billed else 0))
            raise
        except BaseException as error:
            self._count(Billed(num_on_the_way=-1, num_lost=0 if _never_arrived(error) else 1))
            raise
        usage = getattr(answer, "usage", None)
        given, written = (getattr(usage, f"{kind}_tokens", None) for kind in ("prompt", "completion"))
        if isinstance(given, int) and isinstance(written, int | None):
            self._count(Billed(given, written or 0, num_answers=1, num_on_the_way=-1))
        else:
            self._count(Billed(num_lost=1, num_on_the_way=-1))
        return answer

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

    def _why(self, error: APIStatusError) -> str:
        """Why a try failed that may be made again; raises for what may not."""
        status, said = error.status_code, first_line(error)
        code = str(error.code or "")
        text = f"{code} {said}".lower()
        if status in (401, 403) or code in SPENT_CODES:
            remedy = (
                "the account's money is spent; what is labeled stays"
                if code in SPENT_CODES
                else f"set the key in the environment variable {self._api.key_variable}"
            )
            raise ServerFailedError(
                f"the server at {self._api.base_url} refuses with {status}: {said}; {remedy}"
            ) from None
        if status == 404:
            raise ServerFailedError(
                f"the server at {self._api.base_url} has no such thing ({said}); check teacher.api.base_url "
                "and teacher.api.model"
            ) from None
        if status in (408, 409, 425, 429) or status >= 500:
            return f"{status}: {said}"
        if "content_filter" in text or "content management policy" in text:
            raise RefusedError(f"the server's filter refuses it: {said}", "content_filter") from None
        if any(words in text for words in TOO_LONG_WORDS):
            raise RefusedError(f"the server takes no prompt of that length: {said}", "too_long") from None
        raise RefusedError(f"the server refuses it with {status}: {said}", "bad_prompt") from None


def _kind_of(error: Exception) -> type[ServerFailedError]:
    """Whether the server failed at the request, or was busy, late or out of reach for any."""
    import openai

    if isinstance(error, openai.APIStatusError):
        is_later = error.status_code in LATER_STATUSES or "retry-after" in error.response.headers
        return ServerFailedError if is_later else RequestFailedError
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


def _retry_after_sec(error: APIStatusError) -> float:
    """What the server asks for, in seconds; 0 where it says nothing or names a date."""
    try:
        return max(float(error.response.headers.get("retry-after", "0")), 0.0)
    except ValueError:
        return 0.0
