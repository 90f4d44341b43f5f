"""Times of the kernels that run on a GPU, and of the loss, beside what they are made of. Needs a CUDA device.

Figures are milliseconds, the median of ten runs on synthetic logits; compare them within one run. The result
names the card and the driver; the page of results has a section of it once it lies in `benchmarks/results`.
Beside each line stands what an H200 took before there were these kernels.
Each section is printed and saved as soon as it is measured, and one that fails is named and left out, so that
a machine that is lent for minutes leaves what it got to. `--rehearse` runs all of it at small sizes, without
a GPU under Triton's interpreter, before such a machine is had.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu import losses
from benchmarks.gpu.earlier import beside_earlier
from benchmarks.report.devices import need_gpu
from benchmarks.report.results import Figure, Result, ResultTable, save, show_table
from labeler.teacher.label_rows import ColumnLayout
from labeler.teacher.vllm.capture import given_capture, reduction
from logitstore.common.options import positive
from trainer.loss.kernel_losses import takes_kernels

WARM_UPS, REPETITIONS = 3, 10
TEMPERATURES = (1.0, 2.0, 4.0)
Line = tuple[str, Callable[[], object]]
"""What a line of a table measures."""


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


FULL = Sizes(
    steps=((2048, 151_936), (256, 151_936), (2048, 49_152)),  # Qwen3's, a small step of it, and SmolLM2's
    hidden_sizes=(4096, 1024),
    head_rows=2048,
    loss_tokens=8192,
    vocab_size=151_936,
)
REHEARSAL = Sizes(((4, 1000),), hidden_sizes=(32,), head_rows=4, loss_tokens=8, vocab_size=640)


@dataclass(frozen=True, slots=True)
class Timing:
    """A line of the table."""

    name: str
    millis: float | None
    """None where it failed, which the name then says."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--top-k", type=positive, nargs="+", default=[16, 64, 128], help="K (default 16 64 128)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of the JSON")
    parser.add_argument(
        "--rehearse", action="store_true", help="run every section at small sizes, on a CPU too; save nothing"
    )


def run(args: argparse.Namespace) -> int:
    if not args.rehearse:
        need_gpu()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        return _interpreted(args)
    device = "cuda" if has_gpu else "cpu"
    card = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if has_gpu else "CPU"
    tables: list[ResultTable] = []
    sizes = REHEARSAL if args.rehearse else FULL
    notes = [*losses.missing(), *taken(device, sizes.vocab_size)]
    num_failed = 0
    for title, measured in sections(sizes, args.top_k, device):
        try:
            table = beside_earlier(measured(title))
        except Exception as error:  # noqa: BLE001  whatever it is, the other sections go on
            notes.append(f"{title}: not measured, {in_words(error)}.")
            num_failed += 1
            continue
        num_failed += sum(row[1] is None for row in table.rows)
        tables.append(table)
        show_table(table)
        if not args.rehearse:
            save(build_result(tables, card, notes), args.out)
    if tables and not args.rehearse:
        save(build_result(tables, card, notes), args.out)
    for note in notes:
        print(f"  {note}")
    meaning = "; the figures of a rehearsal say only that it runs" if args.rehearse else ""
    print(f"{len(tables)} sections on {card}; {num_failed} sections or lines failed{meaning}")
    return int(not tables or (args.rehearse and num_failed > 0))


def _interpreted(args: argparse.Namespace) -> int:
    """The same rehearsal where Triton interprets: it looks at the environment when it is imported."""
    options = ["--rehearse", "--top-k", *map(str, args.top_k), "--out", str(args.out)]
    command = [sys.executable, "-P", "-m", "benchmarks", "gpu", *options]
    return subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}).returncode


def sections(
    sizes: Sizes, top_ks: Sequence[int], device: str
) -> Iterator[tuple[str, Callable[[str], ResultTable]]]:
    """Titles, and what makes the table of each: the largest step and the losses first."""

    def capture(rows: int, vocab_size: int) -> tuple[str, Callable[[str], ResultTable]]:
        title = f"{rows:,} rows of {vocab_size:,} logits, fp32"
        return title, lambda title: table_of(title, capture_timings(rows, vocab_size, top_ks, device))

    first, *others = sizes.steps
    yield capture(*first)
    for hidden_size in sizes.hidden_sizes:
        shape = f"vocabulary {sizes.vocab_size:,}, hidden {hidden_size:,}, bf16"
        yield (
            f"loss, {sizes.loss_tokens:,} tokens, {shape}",
            lambda title, hidden_size=hidden_size: losses.table(
                title, hidden_size, sizes.loss_tokens, sizes.vocab_size, device
            ),
        )
        yield (
            f"head, {sizes.head_rows:,} rows, {shape} weights",
            lambda title, hidden_size=hidden_size: table_of(
                title, head_timings(sizes.head_rows, hidden_size, sizes.vocab_size, device)
            ),
        )
    for step in others:
        yield capture(*step)


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
