"""How right an answer is: equal, containing, by a pattern."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
import unicodedata
from collections.abc import Iterator

from logitstore.common.config_file import ConfigError
from trainer.parity.records import MatchKind

WORDED = ("exact", "contains", "regex")
"""The kinds that compare words; the others ask a model."""
PATTERN_SEC = 5.0
"""Most time of a pattern for one text."""
MARKS = ".,;:!?\"'`“”‘’ "
"""Not seen at both ends of a text."""
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
# Scripts that put no space between words: Thai, Lao, Myanmar, Khmer, Japanese, Chinese, and Korean, whose
# particles follow the word.
SPACELESS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
    r"\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
)
WORD = rf"[^\W{SPACELESS}]"


def score_of(kind: MatchKind, output: str, reference: str, pattern: re.Pattern[str] | None) -> float:
    """1 or 0.

    None of the ways sees case, punctuation at the ends, runs of white space and the commas between a
    number's thousands. "contains" wants the reference between the borders of words, and a number whole: "15"
    is not in "115", "15.5" or "-15". "regex" compares what the pattern's first group (else the whole pattern)
    last meets in the output with what it last meets in the reference, or with the whole reference where it
    meets nothing there; a meeting without text does not count.
    """
    wanted = _wanted(kind, reference, pattern)
    if kind == "contains":
        return float(re.search(_bordered(wanted), _plain(output)) is not None)
    if kind == "regex":
        if pattern is None:
            raise ValueError("--match regex compares by a pattern, and none is given; give --regex")
        found = _last(pattern, output)
        return float(found is not None and _plain(found) == wanted)
    return float(_plain(output) == wanted)


def check_reference(kind: MatchKind, reference: str, pattern: re.Pattern[str] | None, where: str) -> None:
    """Raises ConfigError, which begins with `where`, for an answer that leaves nothing to compare with."""
    if kind in WORDED and not _wanted(kind, reference, pattern):
        raise ConfigError(
            f"{where}: of the answer {reference!r} nothing is left to compare with, since --match {kind} "
            "does not see punctuation at the ends; write the answer in words, or use --match judge"
        )


def compiled(text: str | None, kind: MatchKind) -> re.Pattern[str] | None:
    """The pattern of `--regex`. Raises ConfigError."""
    if (text is None) != (kind != "regex"):
        raise ConfigError(
            "--match regex needs --regex PATTERN, and no other way of matching takes one"
            f" (--match {kind}, --regex {text!r})"
        )
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"--regex {text!r} is no regular expression: {error}") from None


def _wanted(kind: MatchKind, reference: str, pattern: re.Pattern[str] | None) -> str:
    found = None if kind != "regex" or pattern is None else _last(pattern, reference)
    return _plain(reference if found is None else found)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = None
    with _bounded(pattern):
        for match in pattern.finditer(text):
            own = match.group(1) if pattern.groups and match.group(1) is not None else match.group(0)
            found = own if own.strip() else found
    return found


@contextlib.contextmanager
def _bounded(pattern: re.Pattern[str]) -> Iterator[None]:
    """A pattern may take years for a line of text. Its seconds are the processor's for this thread alone,
    though the timer counts those of all. They are not bounded outside the main thread, which alone gets
    signals, nor on a system without such timers, as Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        if (left_sec := PATTERN_SEC - (time.thread_time() - begun_sec)) > 0:
            signal.setitimer(signal.ITIMER_VIRTUAL, left_sec)
            return
        raise ConfigError(
            f"--regex {pattern.pattern!r} takes more than {PATTERN_SEC:g} s for one text; write it without a "
            "repetition inside another, such as (a+)+. Answers are kept, and are not asked for again"
        )

    begun_sec = time.thread_time()
    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATTERN_SEC)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _plain(text: str) -> str:
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).replace("\u2212", "-")
    words = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), words).rstrip(MARKS)
    bare = words.lstrip(MARKS)
    # The point of ".5" is part of the number.
    return f".{bare}" if bare[:1].isdigit() and words[: -len(bare)].endswith(".") else bare


def _bordered(wanted: str) -> str:
    """A pattern for `wanted` that meets no part of a word or number."""
    before = rf"(?<!{WORD})" if re.match(WORD, wanted) else ""
    after = rf"(?!{WORD})" if re.search(rf"{WORD}\Z", wanted) else ""
    if wanted[0].isdigit():
        before += r"(?<![\d\W]\.)(?<!^\.)(?<!\W-)(?<!^-)"
    elif re.match(r"\.\d", wanted):
        before += r"(?<!\d)"
    if wanted[-1].isdigit():
        after += r"(?!\.\d)"
    return before + re.escape(wanted) + after
