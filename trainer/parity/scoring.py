"""How right an answer is: equal, containing, by a pattern."""

from __future__ import annotations

import re
import unicodedata

from logitstore.common.config_file import ConfigError
from trainer.parity.records import MatchKind


def score_of(kind: MatchKind, output: str, reference: str, pattern: re.Pattern[str] | None) -> float:
    """1 or 0.

    "exact" and "contains" do not see case, punctuation at the ends and runs of white space. "regex" compares
    what the pattern's first group (else the whole pattern) last meets in the output with what it last meets
    in the reference, or with the whole reference where it meets nothing there.
    """
    if kind == "regex":
        assert pattern is not None
        found, wanted = _last(pattern, output), _last(pattern, reference)
        return float(found is not None and _plain(found) == _plain(reference if wanted is None else wanted))
    output, reference = _plain(output), _plain(reference)
    return float(output == reference if kind == "exact" else reference in output)


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


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    if found is None:
        return None
    return found.group(1) if pattern.groups and found.group(1) is not None else found.group(0)


def _plain(text: str) -> str:
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words.strip(".,;:!?\"'` ").replace(",", "") if _is_number(words) else words.strip(".,;:!?\"'` ")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+$]?[\d,]*\.?\d+[.]?", text) is not None
