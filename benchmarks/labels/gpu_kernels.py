"""Times of the kernels that run on a GPU, and of the loss, beside what they are made of. Needs a CUDA device.

Figures are milliseconds, the median of ten runs on synthetic logits; compare them within one run. The result
names the card and the driver; the page of results has a section of it once it lies in `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report.devices import need_gpu
from benchmarks.report.results import Figure, Result, ResultTable, publish
from benchmarks.students import gpu_losses
from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.vllm import given_capture, reduction
from logitstore.common.options import positive

WARM_UPS, REPETITIONS = 3, 10
SIZES = ((2048, 151_936), (256, 151_936), (2048, 49_152))
"""Rows of a step and vocabulary: Qwen3's, a small step of it, and SmolLM2's."""
TEMPERATURES = (1.0, 2.0, 4.0)
HIDDEN_SIZES = (1024, 4096)


@dataclass(frozen=True, slots=True)
class Timing:
    """A line of the table."""

    name: str
    millis: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--top-k", type=positive, nargs="+", default=[16, 64, 128], help="K (default 16 64 128)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of the JSON")


def run(args: argparse.Namespace) -> int:
    need_gpu()
    tables = [
        table_of(f"{rows:,} rows of {size:,} logits, fp32", capture_timings(rows, size, args.top_k))
        for rows, size in SIZES
    ]
    tables += [
        table_of(
            f"head, 2,048 rows, hidden {hidden_size:,}, vocabulary 151,936, bf16 weights",
            head_timings(2048, hidden_size, 151_936),
        )
        for hidden_size in HIDDEN_SIZES
    ]
    tables += gpu_losses.tables()
    card = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    publish(build_result(tables, card, gpu_losses.missing()), args.out, quiet=False)
    return 0


def table_of(title: str, timings: Sequence[Timing]) -> ResultTable:
    return ResultTable.of(title, ("what", "ms"), [(timing.name, timing.millis) for timing in timings])


def build_result(tables: Sequence[ResultTable], card: str, notes: Sequence[str]) -> Result:
    """The tables as they are printed, and a figure in milliseconds for each line that was measured."""
    figures = [
        Figure.of(_slug(f"{table.title} {name}"), float(millis), "ms")
        for table in tables
        for name, millis, *_ in table.rows
        if isinstance(millis, float)
    ]
    first, *more = tables
    return Result.of(
        "gpu",
        meaning=f"Kernels of the capture and losses on one {card}; {first.title} in the first table.",
        columns=first.columns,
        rows=first.rows,
        more_tables=more,
        figures=figures,
        notes=("Medians of ten runs on synthetic logits; the losses are the best of some steps.", *notes),
        details={"card": card},
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def capture_timings(rows: int, vocab_size: int, top_ks: list[int]) -> list[Timing]:
    """The capture by either code, beside one read and what Torch takes for parts of it."""
    from labeler.teacher.vllm import capture_kernel

    logits_NV = torch.randn(rows, vocab_size, device="cuda") * 3
    label_ids_N = torch.randint(0, vocab_size, (rows,), device="cuda")
    timings = [
        _time("one read (amax)", lambda: logits_NV.amax(dim=1)),
        _time("log_softmax", lambda: torch.log_softmax(logits_NV, -1)),
        _time("topk 64", lambda: torch.topk(logits_NV, 64, dim=1)),
        _time("kernel alone", lambda: capture_kernel.group_statistics(logits_NV, label_ids_N, TEMPERATURES)),
    ]
    for top_k in top_ks:
        layout = ColumnLayout(top_k, TEMPERATURES)
        for name, reduce in (("Triton", capture_kernel.reduce_logits), ("Torch", reduction.reduce_logits)):
            timings.append(
                _time(
                    f"label columns, K={top_k}, T=1,2,4: {name}",
                    lambda reduce=reduce, layout=layout: reduce(logits_NV, label_ids_N, layout),
                )
            )
        given_NK = torch.randint(0, vocab_size, (rows, top_k), device="cuda")
        for name, at_ids in (
            ("Triton", capture_kernel.reduce_at_ids),
            ("Torch", given_capture.reduce_at_ids),
        ):
            timings.append(
                _time(
                    f"label columns at {top_k} given ids, T=1,2,4: {name}",
                    lambda at_ids=at_ids, given_NK=given_NK, layout=layout: at_ids(
                        logits_NV, label_ids_N, given_NK, layout
                    ),
                )
            )
    return timings


def head_timings(rows: int, hidden_size: int, vocab_size: int) -> list[Timing]:
    """The head's product: rounded to bf16, with its float32 sum kept, and done in float32."""
    states_NH = torch.randn(rows, hidden_size, device="cuda", dtype=torch.bfloat16)
    weight_VH = torch.randn(vocab_size, hidden_size, device="cuda", dtype=torch.bfloat16)
    return [
        _time("bf16", lambda: states_NH @ weight_VH.t()),
        _time("bf16 in, fp32 out", lambda: torch.mm(states_NH, weight_VH.t(), out_dtype=torch.float32)),
        _time("fp32, weight cast each time", lambda: states_NH.float() @ weight_VH.float().t()),
    ]


def _time(name: str, call: Callable[[], object]) -> Timing:
    for _ in range(WARM_UPS):
        call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    taken = []
    for _ in range(REPETITIONS):
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end))
    return Timing(name, statistics.median(taken))
