"""Times of the capture's kernels and of the head on a GPU, beside what they are made of.

Figures are milliseconds, the median of ten runs on synthetic logits; compare them within one run.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.report.results import ResultTable
from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.vllm.capture import given_capture, reduction
from trainer.loss.kernel_losses import takes_kernels

WARM_UPS, REPETITIONS = 3, 10
TEMPERATURES = (1.0, 2.0, 4.0)
Line = tuple[str, Callable[[], object]]
"""What a line of a table measures."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A line of the table."""

    name: str
    millis: float | None
    """None where it failed, which the name then says."""


def taken(device: str, vocab_size: int) -> Iterator[str]:
    """By which code a job and a student would reduce logits on this device."""
    layout = ColumnLayout(64, TEMPERATURES)
    form = reduction.LogitsForm(torch.device(device), vocab_size, torch.bfloat16)
    yield f"The capture takes {reduction.choose_reduction(form, layout).note}."
    yield f"Rows at given ids take {given_capture.choose_at_ids(form, layout)[1]}."
    by_triton = takes_kernels("auto", torch.device(device), torch.bfloat16)
    yield f"The loss takes {'Triton' if by_triton else 'Torch'}."


def table_of(title: str, timings: Sequence[Timing]) -> ResultTable:
    return ResultTable.of(title, ("what", "ms"), [(timing.name, timing.millis) for timing in timings])


def capture_timings(rows: int, vocab_size: int, top_ks: Sequence[int], device: str) -> list[Timing]:
    """The capture by either code, beside one read and what Torch takes for parts of it."""
    logits_NV = torch.randn(rows, vocab_size, device=device) * 3
    label_ids_N = torch.randint(0, vocab_size, (rows,), device=device)
    return [timed(line, device) for line in _capture_lines(logits_NV, label_ids_N, top_ks)]


def _capture_lines(
    logits_NV: torch.Tensor, label_ids_N: torch.Tensor, top_ks: Sequence[int]
) -> Iterator[Line]:
    from labeler.teacher.vllm.capture import capture_kernel

    yield "one read (amax)", lambda: logits_NV.amax(dim=1)
    yield "log_softmax", lambda: torch.log_softmax(logits_NV, -1)
    yield "topk 64", lambda: torch.topk(logits_NV, 64, dim=1)
    yield "kernel alone", lambda: capture_kernel.group_statistics(logits_NV, label_ids_N, TEMPERATURES)
    for top_k in top_ks:
        layout = ColumnLayout(top_k, TEMPERATURES)
        for name, reduce in (("Triton", capture_kernel.reduce_logits), ("Torch", reduction.reduce_logits)):
            yield (
                f"label columns, K={top_k}, T=1,2,4: {name}",
                lambda reduce=reduce, layout=layout: reduce(logits_NV, label_ids_N, layout),
            )
        given_NK = torch.randint(0, logits_NV.shape[1], (len(logits_NV), top_k), device=logits_NV.device)
        for name, at_ids in (
            ("Triton", capture_kernel.reduce_at_ids),
            ("Torch", given_capture.reduce_at_ids),
        ):
            yield (
                f"label columns at {top_k} given ids, T=1,2,4: {name}",
                lambda at_ids=at_ids, given_NK=given_NK, layout=layout: at_ids(
                    logits_NV, label_ids_N, given_NK, layout
                ),
            )


def head_timings(rows: int, hidden_size: int, vocab_size: int, device: str) -> list[Timing]:
    """The head's product: rounded to bf16, with its float32 sum kept, and done in float32."""
    states_NH = torch.randn(rows, hidden_size, device=device, dtype=torch.bfloat16)
    weight_VH = torch.randn(vocab_size, hidden_size, device=device, dtype=torch.bfloat16)
    lines: list[Line] = [
        ("bf16", lambda: states_NH @ weight_VH.t()),
        ("fp32, weight cast each time", lambda: states_NH.float() @ weight_VH.float().t()),
    ]
    if device == "cuda":  # no other device has this product
        lines.insert(
            1, ("bf16 in, fp32 out", lambda: torch.mm(states_NH, weight_VH.t(), out_dtype=torch.float32))
        )
    return [timed(line, device) for line in lines]


def timed(line: Line, device: str) -> Timing:
    """A line's time, or its failure in words."""
    name, call = line
    try:
        return Timing(name, _gpu_millis(call) if device == "cuda" else _cpu_millis(call))
    except Exception as error:  # noqa: BLE001  whatever it is, the other lines go on
        return Timing(f"{name} ({in_words(error)})", None)


def in_words(error: Exception) -> str:
    """The first line of an error, and memory that is missing as such."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {str(error).partition(os.linesep)[0]}"


def _gpu_millis(call: Callable[[], object]) -> float:
    for _ in range(WARM_UPS):
        call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    taken_millis = []
    for _ in range(REPETITIONS):
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        taken_millis.append(begin.elapsed_time(end))
    return statistics.median(taken_millis)


def _cpu_millis(call: Callable[[], object]) -> float:
    """Milliseconds of one call: in a rehearsal they only say that it runs."""
    begin_sec = time.perf_counter()
    call()
    return (time.perf_counter() - begin_sec) * 1e3
