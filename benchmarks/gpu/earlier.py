"""What a GPU took at commit fb88290, to stand beside what is measured now.

One run on one NVIDIA H200 (2026-11-28, torch 2.11, CUDA 13.0), before there were the kernels; a distillation
step projected 220 rows at a time. A whole job was `labeler run` of 1,500 sequences through Ray; the rates of
decoding are those of 3.57, 3.89, 2.09 and 2.43 s. Compare ratios, and only where the card is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.report.results import Cell, ResultTable

EARLIER_CARD = "H200, fb88290"
EARLIER: Mapping[str, Mapping[str, tuple[Cell, ...]]] = {
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
    "labeling, Qwen3 8B's geometry, 200 sequences of 512 tokens, bf16": {
        "engine, one logprob: the bound": (37_195.0, 1.0),
        "engine without logprobs": (None, 1.11),
        "vLLM's own top-64 logprobs": (None, 1.01),
        "our rows, K=16": (None, 0.84),
        "our rows, K=64": (None, 0.87),
        "our rows, K=128": (None, 0.83),
        "a whole job to disk, K=64, units of 50": (34_000.0, 0.91),
        "256 x 64 tokens decoded, one logprob": (4589.0, 1.0),
        "256 x 64 tokens decoded, our rows": (4212.0, 0.92),
    },
    "labeling, Qwen3 0.6B's geometry, 200 sequences of 512 tokens, bf16": {
        "engine, one logprob: the bound": (58_402.0, 1.0),
        "engine without logprobs": (None, 1.05),
        "vLLM's own top-64 logprobs": (None, 0.98),
        "our rows, K=16": (None, 0.87),
        "our rows, K=64": (None, 0.71),
        "our rows, K=128": (None, 0.70),
        "a whole job to disk, K=64, units of 50": ("44,600 to 48,000", None),
        "256 x 64 tokens decoded, one logprob": (7839.0, 1.0),
        "256 x 64 tokens decoded, our rows": (6742.0, 0.86),
    },
}
"""Milliseconds and of losses the peak in GiB, or tokens per second and their share, by title and line."""


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
