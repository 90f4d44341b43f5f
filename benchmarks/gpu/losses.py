"""A training step of the head on a GPU: our losses beside PyTorch's, Liger's and Apple's.

Every loss gets the same bfloat16 hidden states and weight, and gives both gradients. Time is the best of
`REPETITIONS` steps; the peak is what a step takes beyond its inputs. Liger (`liger-kernel`) and Apple's
`cut-cross-entropy` are measured where they are installed. Compare figures of one run only.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.report.results import ResultTable
from trainer.loss.fused_linear import fused_linear_topk_distillation_loss
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss

TOP_K = 64
WARM_UPS, REPETITIONS = 2, 5
CHUNK_ROWS = (1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Head:
    """A projection and its inputs, on the GPU."""

    hidden_1TH: Tensor
    weight_VH: Tensor
    labels_1T: Tensor
    targets: TeacherTargets

    @classmethod
    def random(cls, hidden_size: int, tokens: int, vocab_size: int, device: str) -> Head:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        width = vocab_size // TOP_K
        ids_1TK = torch.randint(0, width, (1, tokens + 1, TOP_K), generator=generator, device=device)
        masses_1TC = torch.log_softmax(normal(1, tokens + 1, TOP_K + 1), -1)
        return cls(
            hidden_1TH=normal(1, tokens + 1, hidden_size).bfloat16().requires_grad_(),
            weight_VH=normal(vocab_size, hidden_size).mul_(hidden_size**-0.5).bfloat16().requires_grad_(),
            labels_1T=torch.randint(0, vocab_size, (1, tokens + 1), generator=generator, device=device),
            targets=TeacherTargets(
                token_ids_BTK=ids_1TK + width * torch.arange(TOP_K, device=device),
                logprobs_BTK=masses_1TC[..., :TOP_K].contiguous(),
                tail_logprob_BT=masses_1TC[..., TOP_K].contiguous(),
                mask_BTK=torch.ones_like(ids_1TK, dtype=torch.bool),
            ),
        )

    def fused(
        self, settings: LossSettings, *, chunk_rows: int | None = None, torch_only: bool = False
    ) -> Tensor:
        return fused_linear_topk_distillation_loss(
            self.hidden_1TH,
            self.weight_VH,
            self.labels_1T,
            None if settings.alpha == 0 else self.targets,
            settings,
            chunk_rows=chunk_rows,
            # On a CPU the kernels are run for a rehearsal, by Triton's interpreter.
            kernel="torch" if torch_only else "auto" if self.weight_VH.is_cuda else "triton",
        ).loss

    def dense(self) -> Tensor:
        logits_1TV = functional.linear(self.hidden_1TH, self.weight_VH)
        return topk_distillation_loss(logits_1TV, self.labels_1T, self.targets, LossSettings()).loss

    def dense_cross_entropy(self) -> Tensor:
        logits_NV = functional.linear(self.hidden_1TH[0, :-1], self.weight_VH)
        return functional.cross_entropy(logits_NV.float(), self.labels_1T[0, 1:])


def table(title: str, hidden_size: int, tokens: int, vocab_size: int, device: str) -> ResultTable:
    """The losses at one hidden size; one that fails says so and has no figures."""
    head = Head.random(hidden_size, tokens, vocab_size, device)
    rows: list[tuple[str, float | None, float | None]] = []
    for name, loss in losses(head):
        try:
            rows.append((name, *measure(head, loss)))
        except Exception as error:  # noqa: BLE001  whatever it is, the other losses go on
            reason = "out of memory" if isinstance(error, torch.cuda.OutOfMemoryError) else repr(error)
            rows.append((f"{name} ({reason})", None, None))
    return ResultTable.of(title, ("what", "ms", "GiB"), rows)


def missing() -> list[str]:
    """A sentence for each loss of others that is not installed, so not in the tables."""
    packages = {"liger_kernel": "Liger", "cut_cross_entropy": "Apple's cut cross-entropy"}
    return [
        f"{name} is not installed, so not measured."
        for package, name in packages.items()
        if importlib.util.find_spec(package) is None
    ]


def losses(head: Head) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The lines of the table; those of a package that is not installed say so."""
    yield "distillation, T=1", lambda: head.fused(LossSettings())
    yield "distillation, T=2", lambda: head.fused(LossSettings(temperature=2.0))
    for chunk_rows in CHUNK_ROWS:
        yield (
            f"distillation, T=1, {chunk_rows:,} rows a chunk",
            lambda rows=chunk_rows: head.fused(LossSettings(), chunk_rows=rows),
        )
    yield "distillation, T=1, without Triton", lambda: head.fused(LossSettings(), torch_only=True)
    yield "cross-entropy by the same code", lambda: head.fused(LossSettings(alpha=0.0))
    yield "distillation, dense", head.dense
    yield "PyTorch, dense cross-entropy", head.dense_cross_entropy
    yield from _others(head)


def _others(head: Head) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    hidden_NH, labels_N = head.hidden_1TH[0, :-1], head.labels_1T[0, 1:]
    if importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
            LigerFusedLinearCrossEntropyLoss,
        )

        liger = LigerFusedLinearCrossEntropyLoss()
        yield "Liger, fused cross-entropy", lambda: liger(head.weight_VH, hidden_NH, labels_N)
    if importlib.util.find_spec("cut_cross_entropy") is not None:
        from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

        yield "Apple, cut cross-entropy", lambda: linear_cross_entropy(hidden_NH, head.weight_VH, labels_N)


def measure(head: Head, loss: Callable[[], Tensor]) -> tuple[float, float | None]:
    """Milliseconds of the best step, forward and backward, and the GiB it took beyond its inputs.

    On a CPU one step, whose figures say only that it runs.
    """
    if not head.weight_VH.is_cuda:
        begin_sec = time.perf_counter()
        loss().backward()
        return (time.perf_counter() - begin_sec) * 1e3, None
    taken, peak_bytes = [], 0
    for _ in range(WARM_UPS + REPETITIONS):
        head.hidden_1TH.grad = head.weight_VH.grad = None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before_bytes, begin_sec = torch.cuda.memory_allocated(), time.perf_counter()
        loss().backward()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - begin_sec) * 1e3)
        peak_bytes = torch.cuda.max_memory_allocated() - before_bytes
    return min(taken[WARM_UPS:]), peak_bytes / 2**30
