"""What the measurement of labeling says: its tables, figures, notes and plots."""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from benchmarks.labels.labeling_sizes import WHOLE_PATH_TOP_K, Sizes
from benchmarks.report.plots import plot
from benchmarks.report.results import Figure, Result, ResultTable


def build_result(
    args: argparse.Namespace,
    sizes: Sizes,
    own_code: dict[int, dict[str, list[float]]],
    start_sec: dict[str, float],
    rates: dict[str, list[float]],
    ratios: dict[str, list[float]],
    rescore: list[float],
) -> Result:
    """`own_code` is by the sequences of a unit, those of the job among them."""
    labels = {
        "none": "no logprobs",
        "one": "1 logprob of vLLM's (bound)",
        f"vllm_k{WHOLE_PATH_TOP_K}": f"vLLM's own {WHOLE_PATH_TOP_K}, without a tail",
        "job": f"K={WHOLE_PATH_TOP_K}, whole job to disk",
    }
    rows = [
        (
            labels.get(name, f"K={name[1:]}"),
            statistics.median(values),
            statistics.median(ratios.get(name, [1.0])),
        )
        for name, values in rates.items()
    ]
    own_code = {unit_prompts: _with_total(steps) for unit_prompts, steps in own_code.items()}
    job_steps = own_code[sizes.unit_prompts]
    steps = [(name, *(statistics.median(one[name]) for one in own_code.values())) for name in job_steps]
    in_units = tuple(f"us per token in units of {unit_prompts}" for unit_prompts in own_code)
    return Result.of(
        "labeling",
        meaning=f"Exact labels of K={WHOLE_PATH_TOP_K} keep "
        f"{statistics.median(ratios[f'k{WHOLE_PATH_TOP_K}']):.0%} of the rate of a prefill that pays the "
        "lm_head.",
        columns=("variant", "tokens/s", "ratio to the bound"),
        rows=rows,
        more_tables=(
            ResultTable.of("CPU time of our own code, by step", ("step", *in_units), steps),
            ResultTable.of("Start-up", ("step", "s"), list(start_sec.items())),
        ),
        figures=_figures(own_code, sizes.unit_prompts, start_sec, rates, ratios, rescore),
        plots=draw(args.out, ratios, job_steps),
        notes=(
            f"{sizes.prompts} sequences of {sizes.prompt_tokens} tokens, temperatures 1, 2, 4, units of "
            f"{sizes.unit_prompts}; variants take turns, each right after the bound.",
            f"vLLM's own {WHOLE_PATH_TOP_K} are raw logits, as ours are, through the same engine.",
            "Our own code is timed on the tensors of an earlier run, with no engine at work; its loops are "
            "compiled, as in a job that has labeled some 260,000 rows.",
            "Start-up is measured once, on this machine as busy as it is.",
            *_rescoring_note(rescore),
        ),
        quick=args.quick,
        details={"teacher": Path(args.teacher).name, "affinity": sorted(os.sched_getaffinity(0))},
    )


def _with_total(steps: dict[str, list[float]]) -> dict[str, list[float]]:
    return {**steps, "total": [sum(values) for values in zip(*steps.values(), strict=True)]}


def _figures(
    own_code: dict[int, dict[str, list[float]]],
    job_unit: int,
    start_sec: dict[str, float],
    rates: dict[str, list[float]],
    ratios: dict[str, list[float]],
    rescore: list[float],
) -> list[Figure]:
    figures = [Figure.of(f"rate_{name}", values, "tokens/s") for name, values in rates.items()]
    figures += [
        Figure.of(f"ratio_{name}", values, "", is_ratio=True, better="higher")
        for name, values in ratios.items()
        if name != "none"
    ]
    for unit_prompts, steps in own_code.items():
        of_unit = "" if unit_prompts == job_unit else f"_units_of_{unit_prompts}"
        figures += [
            Figure.of(
                f"own_us_{name.replace(' ', '_')}{of_unit}",
                values,
                "us/token",
                better="lower" if name == "total" else "neither",
            )
            for name, values in steps.items()
        ]
    figures += [Figure.of(f"start_sec_{name}", seconds, "s") for name, seconds in start_sec.items()]
    if rescore:
        figures.append(Figure.of("decode_over_rescore_sec", rescore, "", is_ratio=True))
    return figures


def _rescoring_note(rescore: list[float]) -> list[str]:
    if not rescore:
        return []
    ratio = statistics.median(rescore)
    return [f"Labels taken while decoding take {ratio:.2f} times as long as generating, then scoring."]


def draw(out_dir: Path, ratios: dict[str, list[float]], own_code: dict[str, list[float]]) -> list[str]:
    by_k = {int(name[1:]): statistics.median(values) for name, values in ratios.items() if name[0] == "k"}
    with plot(
        out_dir / "labeling-ratio.svg",
        "Labeling rate as a share of the bound, by K",
        "K entries stored",
        "rate / rate of the bound",
    ) as axes:
        axes.plot(list(by_k), list(by_k.values()), marker="o", label="labels with exact tails at T = 1, 2, 4")
        axes.axhline(
            statistics.median(ratios["none"]), linestyle=":", color="gray", label="prefill without logprobs"
        )
        axes.axhline(1.0, color="gray", linewidth=1, label="prefill with 1 logprob: the bound")
        axes.set_xticks(list(by_k))
        axes.set_ylim(bottom=0)
    with plot(
        out_dir / "labeling-own-code.svg", "CPU time of our own code, by step", "", "microseconds per token"
    ) as axes:
        axes.bar(list(own_code), [statistics.median(values) for values in own_code.values()])
    return ["labeling-ratio.svg", "labeling-own-code.svg"]
