"""Which K, how much disk, what cost and how many workers: for your teacher, your prompts, your deadline.

The labeler labels your input twice: a small trial, then the job itself, with as many engines, since those
of one machine slow each other down. The labels say what each K covers; the trial's rates go into the cost
model, which must foretell the job to within 15%.

Shape legend: N label rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.advice.cost_model import Estimate, Rates, Scale, estimate, replicas_for
from benchmarks.advice.plan import (
    TOLERANCE,
    add_price_arguments,
    assumptions,
    compare,
    prices_of,
    scale_of,
)
from benchmarks.labels.label_sources import LabelSource, store_source
from benchmarks.labels.labeled_store import UNIT_RECORDS, LabelingJob, label
from benchmarks.labels.labeled_times import read_store
from benchmarks.report.plots import plot
from benchmarks.report.results import Figure, Result, ResultTable, publish
from benchmarks.sizes.storage_sizes import columns_on_others
from logitstore.common.options import above_zero, amount, share
from logitstore.rows.entropy import entropy
from logitstore.rows.temperature import log_tail_mass, logprobs
from logitstore.store import LogitStore

TRIAL_UNITS = 12
FOLDS = 2


@dataclass(frozen=True, slots=True)
class Coverage:
    """What labels of one K hold, means over rows."""

    top_k: int
    mass: float
    """Teacher's mass on the stored entries, at T=1."""
    mass_at_temperature: float
    kl: float
    """KL(teacher || what the labels say) at the temperature, the tail spread evenly over the other ids, nats:
    the shape of the tail is all that labels with its exact mass lose."""
    renormalised: float
    """What leaving the tail out would be wrong by: -log of the mass at the temperature, nats."""
    bytes_per_token: float
    """Bytes of a shard, with everything in it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The K to take and why."""

    coverage: Coverage
    reaches_target: bool
    why: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    number = parser.add_argument
    number("--temperature", type=above_zero, default=1.0, help="of the distillation (default: 1)")
    number("--min-mass", type=share, default=0.9, help="share of the teacher's mass that K has to cover, or")
    number("--max-kl", type=amount, default=0.4, help="nats that labels of K may lose of the teacher")
    number("--tokens", type=above_zero, default=1e9, help="label rows wanted (default: 1e9)")
    number("--deadline-hours", type=above_zero, default=24.0, help="time for labeling them (default: 24)")
    add_price_arguments(parser)


def run(args: argparse.Namespace) -> int:
    job = LabelingJob.of(args, temperature=args.temperature)
    trial = replace(job, limit=TRIAL_UNITS * UNIT_RECORDS)
    trial_sec, job_sec = label(trial), label(job)
    rates = _rates(trial, trial_sec)
    checked = compare(rates, read_store(str(job.store)), job_sec)
    source = store_source(LogitStore.open(job.store), args.input)
    coverages = [cover(source, top_k, args.temperature) for top_k in args.top_k]
    choice = choose(coverages, args.temperature, args.min_mass, args.max_kl)
    rates = replace(rates, bytes_per_token=choice.coverage.bytes_per_token)
    publish(_result(args, job, source, coverages, choice, rates, checked), args.out, quiet=args.quiet)
    errors = {name: predicted / measured - 1 for name, predicted, measured in checked}
    wrong = {name: f"{error:+.0%}" for name, error in errors.items() if abs(error) > TOLERANCE}
    if wrong:
        print(f"recommend: the cost model was off by more than {TOLERANCE:.0%}: {wrong}", file=sys.stderr)
    return int(bool(wrong))


def _rates(trial: LabelingJob, command_sec: float) -> Rates:
    store = read_store(str(trial.store))
    return Rates(
        bytes_per_token=store.num_bytes / store.rows,
        tokens_per_sec=store.rows_per_sec / store.replicas,
        start_sec=max(command_sec - store.rows / store.rows_per_sec, 0.0),
        decode_tokens_per_sec=None,
        origin=f"a trial of {store.rows:,} rows at K={store.top_k}",
        rows_per_token=store.rows_per_token,
    )


def cover(source: LabelSource, top_k: int, temperature: float) -> Coverage:
    """What the first `top_k` entries hold of what the source's labels know."""
    cut = source.cut(top_k)
    mass_N, kl_N = _mass_and_kl(source, cut, temperature)
    at_one_N, _ = _mass_and_kl(source, cut, 1.0)
    return Coverage(
        top_k=top_k,
        mass=float(at_one_N.mean()),
        mass_at_temperature=float(mass_N.mean()),
        kl=float(kl_N.mean()),
        renormalised=float(-np.log(mass_N).mean()),
        bytes_per_token=sum(columns_on_others(cut, FOLDS).values()),
    )


def _mass_and_kl(source: LabelSource, cut: LabelSource, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N] each, over all rows; the teacher's entropy comes from the uncut rows."""
    masses, divergences = [], []
    for whole, part in zip(source.sequences, cut.sequences, strict=True):
        log_p_NK = logprobs(part.rows, cut.spec, temperature).astype(np.float64)
        log_tail_N = log_tail_mass(part.rows, cut.spec, temperature).astype(np.float64)
        p_NK, tail_N = np.exp(log_p_NK), np.exp(log_tail_N)
        others_N = np.maximum(cut.spec.vocab_size - part.rows.count_N, 1)
        said_N = np.where(p_NK > 0, p_NK * log_p_NK, 0.0).sum(axis=1)
        said_N += np.where(tail_N > 0, tail_N * (log_tail_N - np.log(others_N)), 0.0)
        masses.append(p_NK.sum(axis=1).clip(max=1.0))
        divergences.append(-entropy(whole.rows, source.spec, temperature) - said_N)
    return np.concatenate(masses), np.concatenate(divergences)


def choose(coverages: Sequence[Coverage], temperature: float, min_mass: float, max_kl: float) -> Choice:
    """The smallest K that covers enough or loses little; else the largest, said so."""
    for coverage in sorted(coverages, key=lambda one: one.top_k):
        if coverage.mass_at_temperature >= min_mass or coverage.kl <= max_kl:
            why = (
                f"the smallest tried that covers {min_mass:.0%} of the mass at T={temperature:g} or loses "
                f"at most {max_kl:g} nats"
            )
            return Choice(coverage, True, why)
    largest = max(coverages, key=lambda one: one.top_k)
    why = (
        f"the largest tried: none covers {min_mass:.0%} of the mass at T={temperature:g} or loses at most "
        f"{max_kl:g} nats; its exact tail matters here, and a larger --top-k may be tried"
    )
    return Choice(largest, False, why)


def _result(
    args: argparse.Namespace,
    job: LabelingJob,
    source: LabelSource,
    coverages: Sequence[Coverage],
    choice: Choice,
    rates: Rates,
    checked: Sequence[tuple[str, float, float]],
) -> Result:
    replicas = replicas_for(args.deadline_hours, args.tokens, args.unit_tokens, args.availability, rates)
    scale = scale_of(args, replicas=replicas, devices_per_replica=args.gpus or 1)
    prices = prices_of(args)
    found = estimate(scale, rates, prices)
    best = choice.coverage
    temperatures = (1.0,) if args.temperature == 1 else (1.0, args.temperature)
    return Result.of(
        "recommend",
        meaning=f"Take K={best.top_k}: {best.mass_at_temperature:.0%} of the mass at T={args.temperature:g}, "
        f"{best.kl:.2g} nats lost; {args.tokens:,.0f} rows take {found.store_bytes / 1e12:.3g} TB and "
        f"{replicas:,} replicas for {args.deadline_hours:g} h.",
        columns=("K", *(f"mass at T={temperature:g}" for temperature in temperatures), "KL lost, nats",
                 "wrong by, if renormalised, nats", "B/token", "TB of all"),
        rows=[
            (one.top_k, *(one.mass, one.mass_at_temperature)[: len(temperatures)], one.kl,
             one.renormalised, one.bytes_per_token, one.bytes_per_token * args.tokens / 1e12)
            for one in coverages
        ],
        more_tables=[_job_table(args, scale, found), _check_table(checked)],
        figures=[*_figures(coverages, choice, rates), *_check_figures(checked)],
        plots=[_draw(args, coverages)],
        notes=[
            f"K={best.top_k} is {choice.why}.",
            f"Measured on {source.num_rows:,} rows of {source.origin}; more rows train better codebooks, so "
            "a large store takes less than these B/token.",
            "KL lost: KL(teacher || labels), with the exact tail spread evenly over the other ids. Training "
            "does not see this detail, and is not misled by it.",
            "Wrong by, if renormalised: KL(labels || teacher) where the tail is left out. Training goes "
            "towards this error, so the two columns are not on one scale.",
            assumptions(scale, rates, prices),
            f"The check: a trial of {TRIAL_UNITS} units on {job.replicas} engines foretells the same job to "
            f"within {TOLERANCE:.0%}, or this part fails.",
        ],
        quick=args.quick,
    )  # fmt: skip


def _job_table(args: argparse.Namespace, scale: Scale, found: Estimate) -> ResultTable:
    device = "GPU" if args.gpus else "core"
    rows = [
        ("replicas", f"{scale.replicas:,}"),
        ("labeling", f"{found.label_hours:,.1f} h"),
        (f"{device} hours", f"{found.device_hours:,.0f}"),
        ("store", f"{found.store_bytes / 1e12:,.3f} TB in {found.units:,} shards"),
        ("cost of labeling", f"{found.label_cost:,.0f}"),
        (f"cost of storage, {scale.months:g} months", f"{found.storage_cost:,.0f}"),
        (
            f"cost of requests and of reading {scale.reads:g} times",
            f"{found.request_cost + found.read_cost:,.0f}",
        ),
        ("total", f"{found.total_cost:,.0f}"),
    ]
    title = f"{args.tokens:,.0f} label rows in {args.deadline_hours:g} h"
    return ResultTable.of(title, ("quantity", "value"), rows)


def _check_table(checked: Sequence[tuple[str, float, float]]) -> ResultTable:
    rows = [
        (name, predicted, measured, f"{predicted / measured - 1:+.1%}")
        for name, predicted, measured in checked
    ]
    return ResultTable.of(
        "The cost model against the job that was run", ("quantity", "predicted", "measured", "error"), rows
    )


def _figures(coverages: Sequence[Coverage], choice: Choice, rates: Rates) -> list[Figure]:
    figures = [Figure.of("top_k", choice.coverage.top_k, "", is_ratio=True)]
    for one in coverages:
        named = {"mass": (one.mass, ""), "kl": (one.kl, "nats"), "bytes": (one.bytes_per_token, "B/token")}
        figures += [
            Figure.of(f"{name}_k{one.top_k}", value, unit, is_ratio=True)
            for name, (value, unit) in named.items()
        ]
    figures.append(Figure.of("rows_per_sec", rates.tokens_per_sec, "rows/s"))
    figures.append(Figure.of("start_sec", rates.start_sec, "s"))
    return figures


def _check_figures(checked: Sequence[tuple[str, float, float]]) -> list[Figure]:
    return [
        Figure.of(f"plan_error_{name.replace(' ', '_')}", predicted / measured - 1, "", is_ratio=True)
        for name, predicted, measured in checked
    ]


def _draw(args: argparse.Namespace, coverages: Sequence[Coverage]) -> str:
    with plot(
        args.out / "recommend.svg", f"What labels lose of the teacher at T={args.temperature:g}, by size",
        "B per token", "KL lost, nats",
    ) as axes:  # fmt: skip
        axes.plot([one.bytes_per_token for one in coverages], [one.kl for one in coverages], marker="o")
        for one in coverages:
            axes.annotate(f"K={one.top_k}", (one.bytes_per_token, one.kl), (4, 4), textcoords="offset points")
        axes.set_ylim(0, 1.15 * max(one.kl for one in coverages))
        axes.set_xlim(left=0)
    return "recommend.svg"
