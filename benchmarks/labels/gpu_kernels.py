"""Times of the kernels that run on a GPU, and of the loss, beside what they are made of. Needs a CUDA device.

Figures are milliseconds, the median of ten runs on synthetic logits; compare them within one run. Nothing is
committed by this: it prints a table with the card and the driver.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.students import gpu_losses
from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.vllm import reduction

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
    parser.add_argument("--top-k", type=int, nargs="+", default=[16, 64, 128], help="K (default 16 64 128)")


def run(args: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"no GPU here: torch {torch.__version__} finds no CUDA device; run this on a machine with one"
        )
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    for rows, vocab_size in SIZES:
        print(f"\n{rows:,} rows of {vocab_size:,} logits, fp32")
        _print(capture_timings(rows, vocab_size, args.top_k))
    for hidden_size in HIDDEN_SIZES:
        print(f"\nhead, 2,048 rows, hidden {hidden_size:,}, vocabulary 151,936, bf16 weights")
        _print(head_timings(2048, hidden_size, 151_936))
    gpu_losses.print_tables()
    return 0


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


def _print(timings: list[Timing]) -> None:
    for timing in timings:
        print(f"  {timing.name:40} {timing.millis:8.2f} ms")
