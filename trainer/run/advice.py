"""What people who distill agree on, said once before a run: advice, never a refusal."""

from __future__ import annotations

from collections.abc import Sequence

from logitstore.tokenizer_objects import stored_tokenizer
from trainer.data.sources import Source

FEW_SEQUENCES = 500
"""Guides to distillation name about this many examples as the least that carries over to other prompts."""


def advice_on(sources: Sequence[Source]) -> tuple[str, ...]:
    """One sentence each on what these stores are too few or too bound for; reads no labels."""
    advice: list[str] = []
    num_sequences = sum(sum(source.lengths) for source in sources)
    if num_sequences < FEW_SEQUENCES:
        advice.append(
            f"{num_sequences:,} sequences are few: below about {FEW_SEQUENCES} a student learns them by "
            "heart; label more prompts (`penumbra label expand` makes some), or watch held-out records"
        )
    for licence in sorted({licence for source in sources if (licence := licence_of(source))}):
        advice.append(
            f"the teacher's licence is {licence}: see that it allows to train other models on its output"
        )
    return tuple(advice)


def notes_on_texts(held_out: Sequence[Source]) -> tuple[str, ...]:
    """What the figures of an evaluation mean on stores without the teacher's distribution."""
    return tuple(
        f"{source.uri} holds texts alone, so that on its sequences KL is the cross-entropy of the text and "
        "agreement the accuracy: nothing of the teacher's is known"
        for source in held_out
        if source.manifest.labels.support == "none"
    )


def licence_of(source: Source) -> str:
    """What the teacher's page said of its licence when it labeled; "" where the store does not say."""
    found = stored_tokenizer(source.objects)
    return "" if found is None else found.licence
