"""What students lose when the teacher's whole distribution is replaced by a store of top-K labels.

Students with the same start, batches and number of steps learn from (a) the whole distribution of a live
teacher, (b) a store at K=16 and K=64 with the exact tail, (c) the same entries renormalised, (d) the text.
All of it from two starts: from random weights, where the missing shape of the tail costs most, and warm, from
a student that has already learned from the whole distribution at T=1.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch

from benchmarks.report.plots import plot
from benchmarks.report.results import Cell, Figure, Result, publish
from benchmarks.students.fidelity_labels import (
    LiveTeacher,
    run_teacher,
    stored_targets,
    text_windows,
)
from benchmarks.students.fidelity_students import (
    PEAK_LEARNING_RATE,
    BatchLoss,
    Quality,
    Training,
    evaluate,
    from_store,
    full_distribution,
    random_student,
    train,
)
from logitstore.common.options import positive
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings

DEMO_TEXT = ("pairs.jsonl", "prompts.jsonl")
FULL, TEXT = "full, live", "text"
Start = Literal["random", "warm"]
STARTS: tuple[Start, ...] = ("random", "warm")
WARM_LEARNING_RATE = PEAK_LEARNING_RATE / 3
"""A student that has learned already is moved less, as in any second training."""
TAILS = (("bucket", "exact tail"), ("renormalize", "renormalised"))


COLUMNS = (
    "start", "learns from", "T", "seeds",
    "KL", "+-", "x full", "KL at T", "x full at T", "CE", "agree", "ECE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table: where students start and what they learn from."""

    start: Start
    name: str
    temperature: float
    top_k: int | None = None
    tail: str = ""

    @property
    def figure(self) -> str:
        """Its part in the names of figures."""
        kind = {FULL: "full", TEXT: "text"}.get(self.name, f"{self.tail}_k{self.top_k}")
        warm = "_warm" if self.start == "warm" else ""
        return f"{kind}_t{self.temperature:g}{warm}"


WARM_FROM = Variant("random", FULL, 1.0)
"""Its students are what the warm ones start from, each of the same seed."""
WARM_SEEDS = 1000
"""Added to the seed of a warm student, so that it does not see the batches of its first training again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--seeds", type=positive, help="students of each kind (default 2)")
    parser.add_argument(
        "--steps", type=positive, help="optimizer steps of each student (default 100, quick 25)"
    )
    parser.add_argument("--tokens", type=positive, help="tokens of text to use (default 12000, quick 4000)")
    parser.add_argument("--vocabulary", type=positive, default=4096, help="ids that the teacher is cut to")


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    folder = Path(__file__).parents[1] / "demo_data"
    paths = [args.input] if args.input else [str(folder / name) for name in DEMO_TEXT]
    token_ids_WT = text_windows(paths, args.teacher, args.tokens or (4000 if args.quick else 12_000))
    teacher = run_teacher(token_ids_WT, args.teacher, args.vocabulary)
    every = torch.arange(len(token_ids_WT))
    held_out = every % 5 == 4
    targets = stored_targets(teacher, every)
    num_steps = args.steps or (25 if args.quick else 100)
    qualities: dict[Variant, list[Quality]] = {}
    warm: dict[int, Any] = {}
    for variant, num_seeds in _variants(args.quick, args.seeds or 2):
        loss = _loss(variant, teacher, targets)
        for seed in range(num_seeds):
            if variant.start == "random":
                student = random_student(teacher.vocab_size, seed)
                training = Training(seed, num_steps)
            else:
                student = copy.deepcopy(warm[seed])
                training = Training(WARM_SEEDS + seed, num_steps, WARM_LEARNING_RATE)
            train(student, loss, every[~held_out], training)
            if variant == WARM_FROM:
                warm[seed] = student
            quality = evaluate(teacher, student, every[held_out], variant.temperature)
            qualities.setdefault(variant, []).append(quality)
    _plot_kl(args.out / "fidelity-kl.svg", qualities)
    result = Result.of(
        "fidelity",
        meaning=_meaning(qualities),
        columns=COLUMNS,
        rows=_rows(qualities),
        figures=_figures(qualities),
        plots=["fidelity-kl.svg"],
        notes=[
            f"Teacher cut to {teacher.vocab_size} ids; {int((~held_out).sum())} windows of "
            f"{token_ids_WT.shape[1]} tokens to train on, {int(held_out.sum())} held out; {num_steps} steps, "
            "a short training: compare the rows, and with their spread.",
            "Random: from random weights. Warm: from the student of the same seed in the first row, which "
            "has learned from the whole distribution at T=1, trained as long again on other batches at a "
            "third of the learning rate.",
            "KL (at T=1) and cross-entropy (CE) on the text in nats per token; 'KL at T' has both sides at "
            "the T that was trained; +- is half the range over seeds; 'x full' is the mean over seeds of the "
            "KL over that of the student of the same start, seed and T on the full distribution.",
            "Distillation students see no text loss (alpha=1), so nothing else hides what the labels lack.",
        ],
        quick=args.quick,
        details={v.figure: [asdict(quality) for quality in found] for v, found in qualities.items()},
    )
    publish(result, args.out, quiet=args.quiet)
    return 0


def _variants(quick: bool, num_seeds: int) -> list[tuple[Variant, int]]:
    """What is trained, with the number of seeds; T=4 once. Random starts first: warm ones begin with them."""
    variants = []
    for start in STARTS:
        for temperature, top_ks in ((1.0, (16, 64)), (2.0, (16, 64)), (4.0, (64,))):
            if quick and temperature == 4:
                continue
            seeds = 1 if temperature == 4 else num_seeds
            variants.append((Variant(start, FULL, temperature), seeds))
            for tail, label in TAILS:
                for top_k in top_ks[-1:] if quick else top_ks:
                    name = f"{label} K={top_k}"
                    variants.append((Variant(start, name, temperature, top_k, tail), seeds))
            if temperature == 1:
                variants.append((Variant(start, TEXT, 1.0), seeds))
    return variants


def _loss(
    variant: Variant, teacher: LiveTeacher, targets: dict[tuple[int, float], TeacherTargets]
) -> BatchLoss:
    if variant.name == FULL:
        return full_distribution(teacher, variant.temperature)
    if variant.top_k is None:
        return from_store(teacher, None, LossSettings(alpha=0.0))
    settings = LossSettings(
        temperature=variant.temperature,
        alpha=1.0,
        tail="bucket" if variant.tail == "bucket" else "renormalize",
    )
    return from_store(teacher, targets[variant.top_k, variant.temperature], settings)


def _over_full(
    variant: Variant, qualities: dict[Variant, list[Quality]], kl: Literal["kl", "kl_at_t"] = "kl"
) -> list[float]:
    """KL over that of the student with the same start, seed and temperature on the full distribution."""
    full = qualities[Variant(variant.start, FULL, variant.temperature)]
    return [
        getattr(own, kl) / getattr(other, kl) for own, other in zip(qualities[variant], full, strict=True)
    ]


def _meaning(qualities: dict[Variant, list[Quality]]) -> str:
    def ratios(start: Start, kl: Literal["kl", "kl_at_t"]) -> list[float]:
        return [
            mean(_over_full(Variant(start, f"{label} K=64", 2.0, 64, tail), qualities, kl))
            for tail, label in TAILS
        ]

    random, random_at_t = ratios("random", "kl"), ratios("random", "kl_at_t")
    warm, warm_at_t = ratios("warm", "kl"), ratios("warm", "kl_at_t")
    return (
        "A student trained at T=2 on labels of K=64 with the exact tail ends, from random weights, with "
        f"{random[0]:.2f} times the KL of one that saw the whole distribution (at T=2: "
        f"{random_at_t[0]:.2f}), after a warm start with {warm[0]:.2f} times (at T=2: {warm_at_t[0]:.2f}). "
        f"With the tail renormalised away it is {random[1]:.2f} times ({random_at_t[1]:.2f}) and "
        f"{warm[1]:.2f} times ({warm_at_t[1]:.2f})."
    )


def _rows(qualities: dict[Variant, list[Quality]]) -> list[Sequence[Cell]]:
    rows: list[Sequence[Cell]] = []
    for variant, found in qualities.items():
        means = {field.name: mean(getattr(q, field.name) for q in found) for field in fields(Quality)}
        kls = [quality.kl for quality in found]
        rows.append(
            (
                variant.start,
                variant.name,
                variant.temperature,
                len(found),
                means["kl"],
                (max(kls) - min(kls)) / 2,
                mean(_over_full(variant, qualities)),
                means["kl_at_t"],
                mean(_over_full(variant, qualities, "kl_at_t")),
                means["cross_entropy"],
                means["agreement"],
                means["calibration_error"],
            )
        )
    return rows


def _figures(qualities: dict[Variant, list[Quality]]) -> list[Figure]:
    figures = []
    for variant, found in qualities.items():
        kls = [quality.kl for quality in found]
        figures.append(Figure.of(f"kl_{variant.figure}", kls, "nats", is_ratio=True))
        if variant.top_k is None:
            continue
        better = "lower" if variant.tail == "bucket" else "neither"
        over = _over_full(variant, qualities)
        figures.append(Figure.of(f"kl_over_full_{variant.figure}", over, "", is_ratio=True, better=better))
        if variant.temperature != 1:
            over_at_t = _over_full(variant, qualities, "kl_at_t")
            name = f"kl_at_t_over_full_{variant.figure}"
            figures.append(Figure.of(name, over_at_t, "", is_ratio=True, better=better))
    return figures


def _plot_kl(path: Path, qualities: dict[Variant, list[Quality]]) -> None:
    """A dot per student, the kinds side by side, one group per start and temperature."""
    title = "Held-out KL to the teacher by what the student learned from"
    with plot(path, title, "", "KL at T=1, nats per token", width=7.2, height=4.2) as axes:
        groups = sorted({(variant.start, variant.temperature) for variant in qualities})
        for index, (start, temperature) in enumerate(groups):
            chosen = {v: f for v, f in qualities.items() if (v.start, v.temperature) == (start, temperature)}
            names = [variant.name for variant, found in chosen.items() for _ in found]
            kls = [quality.kl for found in chosen.values() for quality in found]
            label = f"T={temperature:g}, {start} start"
            axes.scatter(names, kls, marker="osDv^x"[index % 6], label=label)
        axes.tick_params(axis="x", rotation=25)
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
