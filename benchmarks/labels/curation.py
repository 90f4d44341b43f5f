"""What is found of planted repeats, by threshold; the time and memory of leaving repeats out.

Planted for each of the prompts in `demo_data/near_prompts.jsonl`: a copy with other case and marks, a copy
with a word left out, a paraphrase written by hand, and a prompt of similar words that asks for something
else, which must stay. They stand among the demo's own prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.labels.planted_seeds import (
    NUM_SEEDS,
    Found,
    Step,
    find_planted,
    in_capitals,
    recall_and_precision,
    without_a_word,
)
from benchmarks.report.plots import plot
from benchmarks.report.results import Figure, Result, ResultTable, publish
from labeler.curation.minhash import MinHashTexts
from labeler.curation.settings import DedupeSettings
from logitstore.common.options import positive
from logitstore.contamination.cosine import CosineTexts
from logitstore.contamination.near import NearTexts
from logitstore.contamination.prompt_texts import PromptText, read_prompts

DATA = Path(__file__).parents[1] / "demo_data"
Plant = Literal["case and marks", "a word left out", "paraphrase", "something else"]
REPEATS: tuple[Plant, ...] = ("case and marks", "a word left out", "paraphrase")
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.95, 0.98)
BLOCK_TEXTS = 512
STEPS: tuple[Step, ...] = ("dedupe", "decontaminate")


@dataclass(frozen=True, slots=True)
class Planted:
    """A text among the others, and what should become of it."""

    text: str
    plant: Plant


@dataclass(frozen=True, slots=True)
class Score:
    """What one method finds at one threshold."""

    threshold: float
    recall: dict[Plant, float]
    """Share of each kind of repeat that is found."""
    precision: float
    """Share of what is dropped that is a repeat; 1 where nothing is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--texts", type=positive, help="texts of the measurement of time (default 20000, quick 2000)"
    )


def run(args: argparse.Namespace) -> int:
    num_texts = args.texts or (2_000 if args.quick else 20_000)
    base, planted = planted_texts()
    background = _demo_texts()
    methods = {"minhash": MinHashTexts, "cosine": CosineTexts}
    scores = {
        name: [score(method(threshold), [*background, *base], planted, threshold) for threshold in THRESHOLDS]
        for name, method in methods.items()
    }
    defaults = DedupeSettings()
    chosen = {
        "minhash": _at(scores["minhash"], defaults.jaccard),
        "cosine": _at(scores["cosine"], defaults.cosine),
    }
    with tempfile.TemporaryDirectory() as folder:
        found = find_planted(DATA, Path(folder))
    rates = [_rate(name, method, num_texts) for name, method in methods.items()]
    for name in methods:
        _draw(args.out / f"curation-{name}.svg", name, scores[name])
    rows = [
        (name, one.threshold, *(one.recall[plant] for plant in REPEATS), one.precision)
        for name, by_threshold in scores.items()
        for one in by_threshold
    ]
    result = Result.of(
        "curation",
        meaning=f"At the default thresholds letters (Jaccard {defaults.jaccard}) find "
        f"{chosen['minhash'].recall['a word left out']:.0%} of prompts that lack a word and meaning (cosine "
        f"{defaults.cosine}) {chosen['cosine'].recall['paraphrase']:.0%} of paraphrases, with "
        f"precision {chosen['minhash'].precision:.2f} and {chosen['cosine'].precision:.2f}.",
        columns=("method", "threshold", *(f"recall: {plant}" for plant in REPEATS), "precision"),
        rows=rows,
        figures=[*_figures_of_methods(chosen), *_figures_of_seeds(found), *_figures_of_rates(rates)],
        more_tables=[
            _table_of_seeds(found),
            ResultTable.of(
                f"Time and memory of {num_texts:,} texts that are all kept",
                ("method", "texts/s", "B/text"),
                rates,
            ),
        ],
        plots=[f"curation-{name}.svg" for name in methods],
        notes=(
            f"{len(planted)} planted texts among {len(background) + len(base)}; paraphrases and prompts of "
            "similar words written by hand, in English.",
            "A search by meaning compares with every kept text: twice the texts take four times as long.",
            "Memory is what Python and numpy hold for the kept texts, as traced.",
        ),
        quick=args.quick,
    )
    publish(result, args.out, quiet=args.quiet)
    return 0


def _figures_of_methods(chosen: Mapping[str, Score]) -> list[Figure]:
    """Recall and precision of each method at its default threshold."""
    return [
        Figure.of(f"{name}_{what}", value, "", is_ratio=True, better="higher")
        for name, one in chosen.items()
        for what, value in (("recall_paraphrase", one.recall["paraphrase"]), ("precision", one.precision))
    ]


def _figures_of_rates(rates: Sequence[tuple[str, float, float]]) -> list[Figure]:
    """Texts a second, then bytes a text, of each method."""
    return [
        *(Figure.of(f"{name}_texts_per_sec", rate, "texts/s", better="higher") for name, rate, _ in rates),
        *(Figure.of(f"{name}_bytes_per_text", size, "B", better="lower") for name, _, size in rates),
    ]


def _figures_of_seeds(found: Sequence[Found]) -> list[Figure]:
    """Recall and precision of each step."""
    figures = []
    for step in STEPS:
        for what, value in zip(("recall", "precision"), recall_and_precision(found, step), strict=True):
            figures.append(Figure.of(f"recipe_{step}_{what}", value, "", is_ratio=True, better="higher"))
    return figures


def _table_of_seeds(found: Sequence[Found]) -> ResultTable:
    return ResultTable.of(
        f"Planted among {NUM_SEEDS} seeds of a recipe, at the default settings of its two steps",
        ("record", "planted", "shall be dropped by", *(f"dropped: {step}" for step in STEPS)),
        [
            (one.plant, one.num_planted, one.wanted, *(one.num_dropped[step] for step in STEPS))
            for one in found
        ],
    )


def planted_texts() -> tuple[list[str], list[Planted]]:
    """The prompts that others are near to, and the others."""
    base: list[str] = []
    planted: list[Planted] = []
    for line in (DATA / "near_prompts.jsonl").read_text().splitlines():
        record = json.loads(line)
        base.append(record["prompt"])
        planted += [
            Planted(in_capitals(record["prompt"]), "case and marks"),
            Planted(without_a_word(record["prompt"]), "a word left out"),
            Planted(record["paraphrase"], "paraphrase"),
            Planted(record["other"], "something else"),
        ]
    return base, planted


def _demo_texts() -> list[str]:
    """The demo's prompts but those that stand among the planted ones' bases."""
    base = set(planted_texts()[0])
    found = [one for one in read_prompts(str(DATA / "prompts.jsonl")) if isinstance(one, PromptText)]
    return [one.text for one in found if one.text not in base]


def score(method: NearTexts, kept: Sequence[str], planted: Sequence[Planted], threshold: float) -> Score:
    """Each planted text is asked about alone, so that none finds another planted one."""
    method.start_block(kept)
    for place in range(len(kept)):
        method.keep(place, place)
    method.start_block([one.text for one in planted])
    dropped = [one for place, one in enumerate(planted) if method.nearest(place) is not None]
    recall: dict[Plant, float] = {
        plant: sum(one.plant == plant for one in dropped) / sum(one.plant == plant for one in planted)
        for plant in REPEATS
    }
    right = sum(one.plant in REPEATS for one in dropped)
    return Score(threshold, recall, right / len(dropped) if dropped else 1.0)


def _at(scores: Sequence[Score], threshold: float) -> Score:
    return next(one for one in scores if one.threshold == threshold)


def _rate(name: str, method: Callable[[float], NearTexts], num_texts: int) -> tuple[str, float, float]:
    """(method, texts per second, bytes per kept text) of texts of 30 random words."""
    numbers = random.Random(0)
    words = [f"{first}{second}" for first in ("ka", "lo", "mi", "ru", "te") for second in range(400)]
    texts = [" ".join(numbers.choices(words, k=30)) for _ in range(num_texts)]
    start = time.process_time()
    _keep_all(method(0.9), texts)
    seconds = time.process_time() - start
    fresh = method(0.9)
    tracemalloc.start()
    _keep_all(fresh, texts[: num_texts // 10])
    size = tracemalloc.get_traced_memory()[0] / (num_texts // 10)
    tracemalloc.stop()
    return name, num_texts / seconds, size


def _keep_all(method: NearTexts, texts: Sequence[str]) -> None:
    for start in range(0, len(texts), BLOCK_TEXTS):
        block = texts[start : start + BLOCK_TEXTS]
        method.start_block(block)
        for place in range(len(block)):
            method.nearest(place)
            method.keep(place, start + place)


def _draw(path: Path, name: str, scores: Sequence[Score]) -> None:
    with plot(path, f"Planted repeats found by {name}", "threshold", "share") as axes:
        for plant in REPEATS:
            axes.plot(THRESHOLDS, [one.recall[plant] for one in scores], marker="o", label=f"found: {plant}")
        axes.plot(
            THRESHOLDS, [one.precision for one in scores], marker="s", linestyle="--", label="precision"
        )
        axes.set_ylim(-0.02, 1.05)
