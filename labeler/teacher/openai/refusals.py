"""What a server says in place of an answer: by its status, or as an error within an answer of status 200.

Gateways answer 200 once a model has begun, and name the status of what follows in the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from logitstore.common.terminal import first_line

if TYPE_CHECKING:
    from openai import APIStatusError

MAYBE_BILLED_STATUSES = (408, 500, 502, 504)
"""With which a server, or a gateway before it, ends a request that its model may have answered; other
refusals come before any work and are not billed."""
LATER_STATUSES = (408, 409, 425, 429, 502, 504, 529)
"""With which a server, or a gateway before it, says that it is busy, overloaded or out of reach: it would
take the same request at another time. Any other with Retry-After says so too."""
LATER_WORDS = ("rate_limit", "rate limit", "overloaded")
"""The same in an error without a status."""
SPENT_CODES = ("insufficient_quota", "billing_hard_limit_reached")
SPENT_STATUS = 402
UNKNOWN_KEY_STATUS = 401
FILTER_WORDS = ("content_filter", "content management policy", "content_policy")
"""Words of servers that will not have a model see a prompt, whatever the status."""
FLAGGED = "flagged"
"""Is of the prompt too, where it is not of who asks."""
WHO_ASKS_WORDS = ("account", "organization", "api key", "api_key")
TOO_LONG_WORDS = (
    "context length",
    "context size",
    "maximum context",
    "maximum allowed input",
    "max_model_len",
    "too long",
)
"""Words of OpenAI's, vLLM's, SGLang's and llama.cpp's servers."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One request that was not answered."""

    status: int
    """Of HTTP; 0 for an error that names none."""
    code: str
    said: str
    pause_sec: float = 0.0
    """What the server asks for, 0 where it says nothing."""
    asks_later: bool = False
    """Whether it asks for the same request at another time, however long from now."""

    @property
    def _text(self) -> str:
        return f"{self.code} {self.said}".lower()

    @property
    def is_later(self) -> bool:
        """Whether the server was busy or out of reach, and did not fail at this request."""
        in_words = not self.status and any(words in self._text for words in LATER_WORDS)
        return self.asks_later or in_words or self.status in LATER_STATUSES

    @property
    def may_be_tried_again(self) -> bool:
        tells_nothing = not (self.status or self.is_of_filter or self.is_of_length)
        return self.is_later or self.status >= 500 or tells_nothing

    @property
    def is_maybe_billed(self) -> bool:
        return not self.status or self.status in MAYBE_BILLED_STATUSES

    @property
    def is_spent(self) -> bool:
        """Whether the account has no money left."""
        return self.status == SPENT_STATUS or self.code in SPENT_CODES

    @property
    def is_of_filter(self) -> bool:
        if self.status == UNKNOWN_KEY_STATUS:
            return False
        is_of_who_asks = any(words in self._text for words in WHO_ASKS_WORDS)
        is_flagged = FLAGGED in self._text and not is_of_who_asks
        return is_flagged or any(words in self._text for words in FILTER_WORDS)

    @property
    def is_of_length(self) -> bool:
        return any(words in self._text for words in TOO_LONG_WORDS)

    def __str__(self) -> str:
        return f"{self.status or self.code or 'an error'}: {self.said}"


def refusal_by_status(error: APIStatusError) -> Refusal:
    headers = error.response.headers
    return Refusal(
        error.status_code,
        str(error.code or ""),
        first_line(error),
        pause_sec=pause_asked_for(headers),
        asks_later="retry-after" in headers,
    )


def refusal_within(answer: Any) -> Refusal | None:
    """The error in an answer of status 200, or in its first choice; None where there is none."""
    choices = getattr(answer, "choices", None)
    first = choices[0] if isinstance(choices, list) and choices else None
    for part in (answer, first):
        error = (getattr(part, "model_extra", None) or {}).get("error")
        if error:
            told = error if isinstance(error, Mapping) else {"message": error}
            code = str(told.get("code") or told.get("type") or "")
            return Refusal(_status_of(code), code, f"{told.get('message') or error!s:.300}")
    return None


def _status_of(code: str) -> int:
    return int(code) if code.isascii() and code.isdigit() and 400 <= int(code) < 600 else 0


def pause_asked_for(headers: Mapping[str, str]) -> float:
    """Seconds of Retry-After, which may be a date, by the server's own clock where it tells that; else 0."""
    asked = headers.get("retry-after", "0")
    try:
        return max(float(asked), 0.0)
    except ValueError:
        pass
    try:
        told = headers.get("date")
        now = parsedate_to_datetime(told) if told else datetime.now(UTC)
        return max((parsedate_to_datetime(asked) - now).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0
