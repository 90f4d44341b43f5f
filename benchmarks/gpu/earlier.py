"""What a GPU took at commit fb88290, to stand beside what is measured now.

One run on one NVIDIA H200 (2026-11-28, torch 2.11, CUDA 13.0), before there were the kernels; a distillation
step projected 220 rows at a time. Compare ratios, and only where the card is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.report.results import Cell, ResultTable

EARLIER_CARD = "H200, fb88290"
EARLIER: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "2,048 rows of 151,936 logits, fp32": {
        "one read (amax)": (0.30,),
        "log_softmax": (1.22,),
        "topk 64": (3.56,),
        "label columns, K=64, T=1,2,4: Torch": (10.9,),
    },
    "loss, 8,192 tokens, vocabulary 151,936, hidden 4,096, bf16": {
        "distillation, T=1": (180.0, 3.86),
        "distillation, T=1, 1,024 rows a chunk": (85.4, 4.54),
        "distillation, T=1, 4,096 rows a chunk": (69.5, 7.15),
        "distillation, dense": (92.2, 24.35),
        "PyTorch, dense cross-entropy": (56.6, 13.91),
        "Liger, fused cross-entropy": (63.8, 1.30),
        "Apple, cut cross-entropy": (87.5, 1.29),
    },
    "loss, 8,192 tokens, vocabulary 151,936, hidden 1,024, bf16": {
        "distillation, T=1": (182.7, 1.11),
        "distillation, T=1, 1,024 rows a chunk": (45.1, 1.79),
        "distillation, T=1, 4,096 rows a chunk": (33.0, 4.40),
        "distillation, dense": (64.8, 24.35),
        "PyTorch, dense cross-entropy": (27.5, 13.91),
        "Liger, fused cross-entropy": (59.6, 0.32),
        "Apple, cut cross-entropy": (23.7, 0.32),
    },
    "head, 2,048 rows, vocabulary 151,936, hidden 4,096, bf16 weights": {
        "bf16": (3.3,),
        "fp32, weight cast each time": (51.0,),
    },
}
"""Milliseconds, and of losses the peak in GiB, by title and line."""


def beside_earlier(table: ResultTable) -> ResultTable:
    """The table with the earlier figures behind its own, if there are any."""
    lines = EARLIER.get(table.title)
    if lines is None:
        return table
    units = table.columns[1:]
    nothing: tuple[Cell, ...] = (None,) * len(units)
    return ResultTable.of(
        table.title,
        (*table.columns, *(f"{unit}, {EARLIER_CARD}" for unit in units)),
        [(*row, *lines.get(str(row[0]), nothing)) for row in table.rows],
    )
