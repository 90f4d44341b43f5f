"""Text of data on a terminal: what would move the cursor or change its colours is shown, not sent."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with every control or invisible character but the newline as an escape, such as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else _escaped(letter) for letter in text)


def printable_line(text: str) -> str:
    """The same in one line: also a newline is shown as an escape."""
    return printable(text).replace("\n", "\\n")


def first_line(error: Exception) -> str:
    """What an error says, without the pages that libraries write after it; its kind where it says nothing."""
    first, _, rest = str(error).strip().partition("\n")
    if first.endswith(":"):  # which only says that it is told now
        first = " ".join([first, *rest.strip().split("\n")[:1]]).rstrip()
    return first or type(error).__name__


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
