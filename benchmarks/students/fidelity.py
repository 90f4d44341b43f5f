"""What students lose when the teacher's whole distribution is replaced by a store of top-K labels.

Students with the same start, batches and number of steps learn from (a) the whole distribution of a live
teacher, (b) a store at K=16 and K=64 with the exact tail, (c) the same entries renormalised, (d) the text.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean

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
    BatchLoss,
    Quality,
    evaluate,
    from_store,
    full_distribution,
    train,
)
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings

DEMO_TEXT = ("pairs.jsonl", "prompts.jsonl")
FULL, TEXT = "full, live", "text"
TAILS = (("bucket", "exact tail"), ("renormalize", "renormalised"))


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table: what students learn from."""

    name: str
    temperature: float
    top_k: int | None = None
    tail: str = ""

    @property
    def figure(self) -> str:
        """Its part in the names of figures."""
        kind = {FULL: "full", TEXT: "text"}.get(self.name, f"{self.tail}_k{self.top_k}")
        return f"{kind}_t{self.temperature:g}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--seeds", type=int, help="students of each kind (default 2)")
    parser.add_argument("--steps", type=int, help="optimizer steps of each student (default 100, quick 25)")
    parser.add_argument("--tokens", type=int, help="tokens of text to use (default 12000, quick 4000)")
    parser.add_argument("--vocabulary", type=int, default=4096, help="ids that the teacher is cut to")


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
    for variant, num_seeds in _variants(args.quick, args.seeds or 2):
        loss = _loss(variant, teacher, targets)
        for seed in range(num_seeds):
            student = train(teacher, loss, every[~held_out], seed=seed, num_steps=num_steps)
            qualities.setdefault(variant, []).append(evaluate(teacher, student, every[held_out]))
    _plot_kl(args.out / "fidelity-kl.svg", qualities)
    result = Result.of(
        "fidelity",
        meaning=_meaning(qualities),
        columns=("learns from", "T", "seeds", "KL", "+-", "x full", "CE", "agree", "ECE"),
        rows=_rows(qualities),
        figures=_figures(qualities),
        plots=["fidelity-kl.svg"],
        notes=[
            f"Teacher cut to {teacher.vocab_size} ids; {int((~held_out).sum())} windows of "
            f"{token_ids_WT.shape[1]} tokens to train on, {int(held_out.sum())} held out; {num_steps} steps, "
            "a short training: compare the rows, and with their spread.",
            "KL and cross-entropy (CE) on the text in nats per token; +- is half the range over seeds; "
            "'x full' is the mean over seeds of the KL over that of the student of the same seed and T on "
            "the full distribution.",
            "Distillation students see no text loss (alpha=1), so nothing else hides what the labels lack.",
        ],
        quick=args.quick,
        details={v.figure: [asdict(quality) for quality in found] for v, found in qualities.items()},
    )
    publish(result, args.out, quiet=args.quiet)
    return 0


def _variants(quick: bool, num_seeds: int) -> list[tuple[Variant, int]]:
    """What is trained, with the number of seeds; T=4 once."""
    variants = []
    for temperature, top_ks in ((1.0, (16, 64)), (2.0, (16, 64)), (4.0, (64,))):
        if quick and temperature == 4:
            continue
        seeds = 1 if temperature == 4 else num_seeds
        variants.append((Variant(FULL, temperature), seeds))
        for tail, label in TAILS:
            for top_k in top_ks[-1:] if quick else top_ks:
                variants.append((Variant(f"{label} K={top_k}", temperature, top_k, tail), seeds))
        if temperature == 1:
            variants.append((Variant(TEXT, 1.0), seeds))
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


def _over_full(variant: Variant, qualities: dict[Variant, list[Quality]]) -> list[float]:
    """KL over that of the student with the same seed and temperature on the full distribution."""
    full = qualities[Variant(FULL, variant.temperature)]
    return [own.kl / other.kl for own, other in zip(qualities[variant], full, strict=True)]


def _meaning(qualities: dict[Variant, list[Quality]]) -> str:
    exact, renormalised = (
        mean(_over_full(Variant(f"{label} K=64", 2.0, 64, tail), qualities)) for tail, label in TAILS
    )
    return (
        f"A student trained at T=2 on labels of K=64 ends with {exact:.2f} times the KL of one that saw the "
        f"whole distribution if the tail is exact, with {renormalised:.2f} times if it is renormalised away."
    )


def _rows(qualities: dict[Variant, list[Quality]]) -> list[Sequence[Cell]]:
    rows: list[Sequence[Cell]] = []
    for variant, found in qualities.items():
        means = {field.name: mean(getattr(q, field.name) for q in found) for field in fields(Quality)}
        kls = [quality.kl for quality in found]
        rows.append(
            (
                variant.name,
                variant.temperature,
                len(found),
                means["kl"],
                (max(kls) - min(kls)) / 2,
                mean(_over_full(variant, qualities)),
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
        if variant.top_k is not None:
            better = "lower" if variant.tail == "bucket" else "neither"
            over = _over_full(variant, qualities)
            figures.append(
                Figure.of(f"kl_over_full_{variant.figure}", over, "", is_ratio=True, better=better)
            )
    return figures


def _plot_kl(path: Path, qualities: dict[Variant, list[Quality]]) -> None:
    """A dot per student, the kinds side by side, one group per temperature."""
    title = "Held-out KL to the teacher by what the student learned from"
    with plot(path, title, "", "KL at T=1, nats per token", width=7.2, height=4.2) as axes:
        temperatures = sorted({variant.temperature for variant in qualities})
        for index, temperature in enumerate(temperatures):
            chosen = {v: found for v, found in qualities.items() if v.temperature == temperature}
            names = [variant.name for variant, found in chosen.items() for _ in found]
            kls = [quality.kl for found in chosen.values() for quality in found]
            axes.scatter(names, kls, marker="osD"[index % 3], label=f"T={temperature:g}")
        axes.tick_params(axis="x", rotation=25)
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
