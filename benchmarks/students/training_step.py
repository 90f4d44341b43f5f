"""One measured case of `penumbra bench training`, in a process of its own.

A peak of memory can be read only once per process, so every case gets one: `measure_case` starts
`python -m benchmarks.students.training_step CASE`, which prints its figures as one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from trainer.loss.fused_linear import fused_linear_topk_distillation_loss
from trainer.loss.loss_inputs import TeacherTargets
from trainer.loss.loss_settings import LossSettings
from trainer.loss.losses import topk_distillation_loss

TOP_K = 64
HIDDEN_SIZE = 256


@dataclass(frozen=True, slots=True)
class Case:
    """What one process measures."""

    losses: tuple[str, ...]
    """Keys of `LOSSES`; with more than one their steps alternate, so that quotients share the weather."""
    vocab_size: int
    tokens: int
    repetitions: int
    """Steps of each loss that are timed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a case cost."""

    seconds: dict[str, list[float]]
    """Processor time of each step, by loss; on an idle machine it is the wall's."""
    peak_bytes: int
    """Largest resident size during the steps, less that before the first (weights and inputs)."""


def measure_case(case: Case) -> Measured:
    """Run the case in a fresh single-threaded process."""
    process = subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.students.training_step", json.dumps(asdict(case))],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if process.returncode:
        raise OSError(f"the step of {case} ended with status {process.returncode}: {process.stderr[-2000:]}")
    return Measured(**json.loads(process.stdout.splitlines()[-1]))


class Head:
    """A projection with its inputs: random hidden states, labels and teacher targets of K entries."""

    def __init__(self, vocab_size: int, tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(1, tokens + 1, HIDDEN_SIZE, generator=generator).requires_grad_()
        self.weight = torch.randn(vocab_size, HIDDEN_SIZE, generator=generator).mul_(HIDDEN_SIZE**-0.5)
        self.weight.requires_grad_()
        self.labels = torch.randint(0, vocab_size, (1, tokens + 1), generator=generator)
        # Distinct ids without a permutation of the vocabulary per row: one id in each of K equal ranges.
        width = vocab_size // TOP_K
        ids = torch.randint(0, width, (1, tokens + 1, TOP_K), generator=generator) + width * torch.arange(
            TOP_K
        )
        log_masses = torch.log_softmax(torch.randn(1, tokens + 1, TOP_K + 1, generator=generator), dim=-1)
        self.targets = TeacherTargets(
            token_ids_BTK=ids,
            logprobs_BTK=log_masses[..., :TOP_K].contiguous(),
            tail_logprob_BT=log_masses[..., TOP_K].contiguous(),
            mask_BTK=torch.ones_like(ids, dtype=torch.bool),
        )

    def fused(self, targets: TeacherTargets | None, settings: LossSettings) -> Tensor:
        return fused_linear_topk_distillation_loss(
            self.hidden, self.weight, self.labels, targets, settings
        ).loss

    def dense_distillation(self) -> Tensor:
        logits = functional.linear(self.hidden, self.weight)
        return topk_distillation_loss(logits, self.labels, self.targets, LossSettings()).loss

    def dense_cross_entropy(self) -> Tensor:
        logits = functional.linear(self.hidden[:, :-1], self.weight)
        return functional.cross_entropy(logits.flatten(0, 1), self.labels[:, 1:].flatten())

    def step(self, name: str) -> None:
        """Forward and backward, gradients of hidden states and weight included."""
        self.hidden.grad = self.weight.grad = None
        LOSSES[name](self).backward()


LOSSES: dict[str, Callable[[Head], Tensor]] = {
    "fused distillation": lambda head: head.fused(head.targets, LossSettings()),
    "fused distillation, T=2": lambda head: head.fused(head.targets, LossSettings(temperature=2.0)),
    "fused cross-entropy": lambda head: head.fused(None, LossSettings(alpha=0.0)),
    "dense distillation": Head.dense_distillation,
    "dense cross-entropy": Head.dense_cross_entropy,
}


def run_case(case: Case) -> Measured:
    """Measure in this process; it should do nothing else."""
    torch.set_num_threads(1)
    warm_up = Head(1024, 8)
    for name in case.losses:
        warm_up.step(name)
    head = Head(case.vocab_size, case.tokens)
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # lets VmHWM start again from here
    seconds: dict[str, list[float]] = {name: [] for name in case.losses}
    for _ in range(case.repetitions):
        for name in case.losses:
            start = time.process_time()
            head.step(name)
            seconds[name].append(time.process_time() - start)
    return Measured(seconds=seconds, peak_bytes=_resident_bytes("VmHWM") - before)


def _resident_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}; peak memory is measured on Linux only")


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    print(json.dumps(asdict(run_case(Case(**{**fields, "losses": tuple(fields["losses"])})))))
