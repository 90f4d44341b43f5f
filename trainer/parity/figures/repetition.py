"""How much of a text it has said before, whatever tokenizer wrote it."""

from __future__ import annotations

import re

from trainer.parity.figures.scoring import SPACELESS, WORD

RUN = 4
"""Words that are looked at together, as in Welleck et al. 2020, "Neural text generation with unlikelihood
training" (seq-rep-4)."""
_WORDS = re.compile(rf"{WORD}+|[{SPACELESS}]|[^\w\s]")


def repetition(text: str) -> float:
    """The share of its runs of RUN words that stand in it before; 0 for a text of fewer words.

    A mark is a word of its own, and so is each character of scripts that put no space between words.
    """
    words = _WORDS.findall(text.casefold())
    runs = [tuple(words[place : place + RUN]) for place in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
