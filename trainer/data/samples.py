"""What the dataset yields and the collator takes."""

from __future__ import annotations

from dataclasses import dataclass

from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence
from logitstore.rows.silent_rows import with_text_rows

ANY_STEP = -1


def as_learned(sequence: LabeledSequence, labels: LabelSpec) -> LabeledSequence:
    """The sequence as its student sees it; of a store of texts alone with the text as hard labels."""
    return (with_text_rows(sequence) if labels.support == "none" else sequence).for_student()


@dataclass(frozen=True, slots=True)
class Sample:
    """One labeled sequence and what is needed to read its rows."""

    sequence: LabeledSequence
    labels: LabelSpec
    """What a label row of its store holds."""
    step: int = ANY_STEP
    """Batch of this rank's epoch that the sample belongs to, counted from where reading began;
    ANY_STEP for samples fetched by index."""
    store: int = 0
    """Place of its store among those of the dataset."""
