"""What is logged of the steps since the last log, added up over all processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.loss.loss_inputs import LossOutput


class TokenMeans:
    """Means since the last log, over all processes: of losses per label, by the labels' weights; of others
    over the rows with a teacher."""

    WEIGHTED = ("distillation", "cross_entropy")
    NAMES = ("distillation", "cross_entropy", "teacher_mass", "student_mass", "top1_agreement")
    OF_TEACHER = ("distillation", "teacher_mass", "student_mass", "top1_agreement")

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, output: LossOutput, num_items: Tensor | int | None, token_counts_3: Tensor | None) -> None:
        metrics = output.metrics
        rows, teacher_rows = metrics.num_rows, metrics.num_teacher_rows
        items = metrics.weight if num_items is None else num_items
        if token_counts_3 is None:
            token_counts_3 = torch.zeros(3, dtype=torch.int64)
        sums = torch.stack(
            [
                torch.as_tensor(rows, device=output.loss.device),
                torch.as_tensor(teacher_rows, device=output.loss.device),
                torch.as_tensor(metrics.weight, device=output.loss.device),
                output.distillation * items,
                output.cross_entropy * items,
                *(
                    value * teacher_rows
                    for value in (metrics.teacher_mass, metrics.student_mass, metrics.top1_agreement)
                ),
            ]
        )
        if sums.device.type != "mps":  # which has no float64
            sums = sums.double()
        sums = torch.cat([sums, token_counts_3.to(sums)])
        self.sums = sums if self.sums is None else self.sums + sums

    def take(self) -> dict[str, float]:
        """Every process must call it; all get the same. Without a teacher's rows its means are left out."""
        if self.sums is None:
            return {}
        sums, self.sums = self.sums, None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        num_rows, teacher_rows, weight, *totals, num_tokens, num_places, num_cut_rows = sums.tolist()
        means = {
            name: round(total / ((weight if name in self.WEIGHTED else teacher_rows) or 1), 6)
            for name, total in zip(self.NAMES, totals, strict=True)
            if teacher_rows or name not in self.OF_TEACHER
        }
        if math.isnan(means.get("teacher_mass", 0.0)):  # not known of entries that are all there is
            del means["teacher_mass"]
        fill = round(num_tokens / max(num_places, 1), 4)
        return {**means, "num_rows": int(num_rows), "fill": fill, "num_cut_rows": int(num_cut_rows)}
