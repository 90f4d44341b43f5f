"""What is measured on a GPU, in which order, and how long each part of it may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from benchmarks.gpu import engines, losses
from benchmarks.gpu.geometries import GEOMETRIES, TINY, Geometry
from benchmarks.gpu.kernels import capture_timings, head_timings, table_of
from benchmarks.report.results import ResultTable

Part = Literal["capture", "loss", "head", "labeling"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured."""

    steps: tuple[tuple[int, int], ...]
    """Rows and vocabulary of a step."""
    hidden_sizes: tuple[int, ...]
    head_rows: int
    loss_tokens: int
    vocab_size: int
    """Ids of head and loss."""
    geometries: tuple[Geometry, ...]
    """Models whose engines are measured, the most important first."""
    runs: engines.Runs


FULL = Sizes(
    steps=((2048, 151_936), (256, 151_936), (2048, 49_152)),  # Qwen3's, a small step of it, and SmolLM2's
    hidden_sizes=(4096, 1024),
    head_rows=2048,
    loss_tokens=8192,
    vocab_size=151_936,
    geometries=GEOMETRIES,
    runs=engines.FULL,
)
REHEARSAL = Sizes(
    ((4, 1000),),
    hidden_sizes=(32,),
    head_rows=4,
    loss_tokens=8,
    vocab_size=640,
    geometries=(TINY,),
    runs=engines.REHEARSAL,
)


@dataclass(frozen=True, slots=True)
class Section:
    """One table."""

    part: Part
    title: str
    budget_sec: int
    """Seconds that it should not exceed on an H100 or H200, compiling included."""
    settings: str
    """The choices of the command line that it depends on."""
    measure: Callable[[], ResultTable]


def sections(sizes: Sizes, top_ks: Sequence[int], device: str) -> list[Section]:
    """The largest step, losses and heads first, then the engines, then what matters less."""
    chosen = "K = " + ", ".join(map(str, top_ks))

    def capture(rows: int, vocab_size: int) -> Section:
        title = f"{rows:,} rows of {vocab_size:,} logits, fp32"

        def measure() -> ResultTable:
            return table_of(title, capture_timings(rows, vocab_size, top_ks, device))

        return Section("capture", title, 30, chosen, measure)

    first, *others = (capture(*step) for step in sizes.steps)
    found = [first]
    for hidden_size in sizes.hidden_sizes:
        shape = f"vocabulary {sizes.vocab_size:,}, hidden {hidden_size:,}, bf16"
        title = f"loss, {sizes.loss_tokens:,} tokens, {shape}"
        loss = partial(losses.table, title, hidden_size, sizes.loss_tokens, sizes.vocab_size, device)
        found.append(Section("loss", title, 60, "", loss))
        title = f"head, {sizes.head_rows:,} rows, {shape} weights"
        found.append(Section("head", title, 10, "", partial(_head, title, hidden_size, sizes, device)))
    for geometry in sizes.geometries:
        title = engines.title_of(geometry, sizes.runs)
        budget_sec = geometry.budget_sec
        measure = partial(engines.table, title, geometry, sizes.runs, top_ks, device, budget_sec)
        found.append(Section("labeling", title, budget_sec, chosen, measure))
    return [*found, *others]


def _head(title: str, hidden_size: int, sizes: Sizes, device: str) -> ResultTable:
    return table_of(title, head_timings(sizes.head_rows, hidden_size, sizes.vocab_size, device))
