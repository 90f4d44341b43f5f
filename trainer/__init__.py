"""Students learn from logit stores: streaming dataset, losses and trainers. The teacher is never loaded.

What users import stands here: `from trainer import StreamingLogitDataset`. The modules behind these names
may move; the names stay. Each is loaded when it is first asked for, so `import trainer` alone loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.batch.collate import DistillationCollator
    from trainer.batch.collate_settings import CollateSettings
    from trainer.data.dataset import StreamingLogitDataset
    from trainer.data.loader import LogitDataLoader
    from trainer.data.packed_rows import Packing
    from trainer.data.sources import StoreSpec
    from trainer.hf.arguments import OfflineDistillationConfig
    from trainer.hf.stock_trainer import make_compute_loss_func
    from trainer.hf.trainer import OfflineDistillationTrainer
    from trainer.loss.fused_linear import FusedLinearTopKDistillationLoss
    from trainer.loss.loss_inputs import LossOutput, TeacherTargets
    from trainer.loss.loss_settings import LossSettings
    from trainer.loss.losses import TopKDistillationLoss, naive_topk_loss

_MODULES = {
    "CollateSettings": "trainer.batch.collate_settings",
    "DistillationCollator": "trainer.batch.collate",
    "FusedLinearTopKDistillationLoss": "trainer.loss.fused_linear",
    "LogitDataLoader": "trainer.data.loader",
    "LossOutput": "trainer.loss.loss_inputs",
    "LossSettings": "trainer.loss.loss_settings",
    "OfflineDistillationConfig": "trainer.hf.arguments",
    "OfflineDistillationTrainer": "trainer.hf.trainer",
    "Packing": "trainer.data.packed_rows",
    "StoreSpec": "trainer.data.sources",
    "StreamingLogitDataset": "trainer.data.dataset",
    "TeacherTargets": "trainer.loss.loss_inputs",
    "TopKDistillationLoss": "trainer.loss.losses",
    "make_compute_loss_func": "trainer.hf.stock_trainer",
    "naive_topk_loss": "trainer.loss.losses",
}
"""Where each name of the package's face is defined."""

__all__ = [
    "CollateSettings",
    "DistillationCollator",
    "FusedLinearTopKDistillationLoss",
    "LogitDataLoader",
    "LossOutput",
    "LossSettings",
    "OfflineDistillationConfig",
    "OfflineDistillationTrainer",
    "Packing",
    "StoreSpec",
    "StreamingLogitDataset",
    "TeacherTargets",
    "TopKDistillationLoss",
    "make_compute_loss_func",
    "naive_topk_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
