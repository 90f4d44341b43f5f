"""Whether the checkpoints of a training, and its student, have room on their disk.

Otherwise the first save fails, or a later one, after hours of training.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from trainer.errors import SettingError

_MOMENTS = 2
"""Values of its state that an optimizer is taken to keep of a weight where that cannot be tried."""
_OF_DEEPSPEED_BYTES = 12
"""Bytes of each trained weight in DeepSpeed's state: itself and two moments, in float32."""


_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes, about: what transformers writes of this student."""

    weights: int
    """Those of adapters alone, where these are trained."""
    optimizer: int

    @property
    def checkpoint(self) -> int:
        return self.weights + self.optimizer


def saves_in_parts(accelerator: Any) -> bool:
    """Whether FSDP, which is at work, saves of each process its own part."""
    return "FULL_STATE_DICT" not in str(accelerator.state.fsdp_plugin.state_dict_type)


def bytes_saved(args: Any, model: Any, optimizer: Any = None, *, is_saved_twice: bool = False) -> Saved:
    """What a checkpoint of this student takes.

    `optimizer` is one that was given; None is that of the arguments. With `is_saved_twice`, a checkpoint
    holds the weights once more, as FSDP's own.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = _size(trained) if hasattr(model, "peft_config") else weight_bytes(model)
    if args.save_only_model:
        return Saved(weights, 0)
    if args.deepspeed is not None:
        return Saved(weights, weights + _OF_DEEPSPEED_BYTES * sum(one.numel() for one in trained))
    state = _state_bytes(args, model, trained, optimizer)
    return Saved(weights * (1 + is_saved_twice), state)


def weight_bytes(model: Any) -> int:
    """All weights and buffers that are saved, those that are tied to others once."""
    of_weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = [value for name, value in model.state_dict().items() if name not in of_weights]
    return _size([*model.parameters(), *buffers])


def check_disk(args: Any, saved: Saved, *, num_steps: int, student_bytes: int = 0) -> None:
    """Raises SettingError if not even one checkpoint has room, and warns if not all have that lie there at
    once; `student_bytes` are saved when training has ended.
    """
    if not args.should_save:
        return
    folder = Path(args.output_dir).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    there = len([*folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")])
    kept = _kept_at_once(args, num_steps)
    num_new = max(min(kept, 1), kept - there)
    parts = f"weights {_amount(saved.weights)}, optimizer {_amount(saved.optimizer)}"
    one = f"a checkpoint takes about {_amount(saved.checkpoint)} ({parts})" if num_new else ""
    end = f"the student at the end {_amount(student_bytes)}" if student_bytes else ""
    what = " and ".join(filter(None, [one, end]))
    if min(num_new, 1) * saved.checkpoint + student_bytes > free:
        raise SettingError(
            f"{what}, and {nearest} has {_amount(free)} free: not one can be saved; make room, or choose "
            "another output_dir (in a configuration output.folder)"
        )
    if num_new * saved.checkpoint + student_bytes > free:
        warnings.warn(
            f"{what}, and {nearest} has {_amount(free)} free: that is too little for the {kept} "
            f"checkpoints that lie there at once (save_total_limit={args.save_total_limit}, and the newest "
            "before the oldest goes); make room, or lower save_total_limit, or save less often",
            stacklevel=2,
        )


def _kept_at_once(args: Any, num_steps: int) -> int:
    """Checkpoints in the folder while the last one is being saved."""
    if args.save_strategy == SaveStrategy.NO:
        return 0
    num_saves = 1  # at least, of the best and of each epoch of given steps
    if args.save_strategy == SaveStrategy.STEPS:
        every = math.ceil(num_steps * args.save_steps) if args.save_steps < 1 else int(args.save_steps)
        num_saves = max(1, math.ceil(num_steps / max(1, every)))
    elif args.save_strategy == SaveStrategy.EPOCH and args.max_steps <= 0:
        num_saves = math.ceil(args.num_train_epochs)
    if args.save_total_limit is None:
        return num_saves
    return min(num_saves, args.save_total_limit + 1)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _amount(num_bytes: int) -> str:
    unit, name = next((one for one in _UNITS if num_bytes >= one[0]), _UNITS[-1])
    return f"{num_bytes / unit:,.1f} {name}"


def _state_bytes(args: Any, model: Any, trained: list[Any], optimizer: Any) -> int:
    """Bytes of the optimizer's state, found by a step of one like it on weights without memory."""
    try:
        on_meta = [torch.nn.Parameter(torch.empty_like(one, device="meta")) for one in trained]
        for one in on_meta:
            one.grad = torch.empty_like(one)
        if optimizer is None:
            kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        else:
            kind, settings = type(optimizer), optimizer.defaults
        settings = {name: value for name, value in settings.items() if name not in ("fused", "foreach")}
        tried = kind(on_meta, **settings)
        tried.step()
    except Exception:  # noqa: BLE001 - of others, that fail as they like on such weights
        return _MOMENTS * _size(trained)
    state = [value for of_one in tried.state.values() for value in of_one.values()]
    return _size(value for value in state if torch.is_tensor(value))
