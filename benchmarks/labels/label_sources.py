"""The labels that sizes and reading are measured on: a capture file, and what the labeler made itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.labels.labeled_store import LabelingJob, finished_store
from logitstore.exchange.npz.reading import read_npz
from logitstore.manifest.fields import LabelSpec
from logitstore.records import LabeledSequence
from logitstore.rows.temperature import truncate
from logitstore.store import LogitStore

SAMPLE = Path(__file__).parents[2] / "tests" / "data" / "capture_sample.npz"


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Labeled sequences in memory."""

    name: str
    """"capture" or "labeler": the first word of the names of its figures."""
    origin: str
    """What people read: the file, or the teacher and the prompts."""
    spec: LabelSpec
    sequences: list[LabeledSequence]

    @property
    def num_rows(self) -> int:
        return sum(sequence.rows.num_rows for sequence in self.sequences)

    def cut(self, top_k: int) -> LabelSource:
        """The same with the first `top_k` entries of each row; what is cut off goes to the tails."""
        if not 1 <= top_k <= self.spec.top_k:
            raise ValueError(
                f"{self.origin} has {self.spec.top_k} entries per row, K={top_k} was asked for; lower --top-k"
            )
        sequences = [
            replace(sequence, rows=truncate(sequence.rows, self.spec, top_k)) for sequence in self.sequences
        ]
        return replace(self, spec=replace(self.spec, top_k=top_k), sequences=sequences)


def label_sources(args: argparse.Namespace) -> Iterator[LabelSource]:
    """The capture (given, or the packaged sample where no prompts are), then the labeler's own labels.

    Labeling takes a teacher and a while; it is done when asked for, once for all parts (`labeled_store`).
    """
    if args.capture or args.capture_only or not args.input:
        yield capture_source(args.capture or SAMPLE)
    if not args.capture_only:
        yield store_source(finished_store(LabelingJob.of(args)), args.input)


def capture_source(path: Path) -> LabelSource:
    source = read_npz(path)
    origin = path.name if path == SAMPLE else f"{path.name}, which is not in the repository"
    return LabelSource("capture", origin, source.labels, list(source.sequences))


def store_source(store: LogitStore, prompts: str | None) -> LabelSource:
    teacher = store.manifest.teacher.model
    origin = f"{teacher} on {Path(prompts).name if prompts else 'the demo pairs'}"
    return LabelSource("labeler", origin, store.manifest.labels, list(store.iter_sequences()))
