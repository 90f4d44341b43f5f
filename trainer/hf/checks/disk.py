"""Whether the checkpoints of a training, and its student, have room on their disk.

Otherwise the first save fails, or a later one, after hours of training.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, SaveStrategy

from trainer.errors import SettingError, TrainingWarning
from trainer.hf.epochs import Saves

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
    guess: str = ""
    """How the optimizer's bytes were guessed; empty where they are known."""

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
        state = weights + _OF_DEEPSPEED_BYTES * sum(one.numel() for one in trained)
        return Saved(weights, state, f"DeepSpeed's, {_OF_DEEPSPEED_BYTES} for each trained weight")
    state, guess = _state_bytes(args, model, trained, optimizer)
    return Saved(weights * (1 + is_saved_twice), state, guess)


def weight_bytes(model: Any) -> int:
    """All weights and buffers that are saved, those that are tied to others once."""
    of_weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = [value for name, value in model.state_dict().items() if name not in of_weights]
    return _size([*model.parameters(), *buffers])


def check_disk(
    args: Any, saved: Saved, saves: Saves, *, student_bytes: int = 0, is_restart: bool = False
) -> None:
    """Raises SettingError if not even one checkpoint has room, or the student beside it, and warns if not all
    have that lie there at once; `student_bytes` are saved when training has ended.

    With `is_restart` the folder is emptied before. A disk that does not say how large it is is not judged.
    """
    if not args.should_save:
        return
    folder = Path(args.output_dir).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(nearest)
    if not usage.total:
        return
    emptied = _bytes_below(folder) if is_restart else 0
    free = usage.free + emptied
    there = 0 if is_restart else len([*folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")])
    plan = _plan(args, saves, there)
    room = f"{nearest} has {_amount(free)} free{' without what is removed' if emptied else ''}"
    what = f"{_what(saved, saves, student_bytes)}, and {room}"

    surely = saved.weights if saved.guess else saved.checkpoint
    first = surely if saves.least else 0
    if max(first, min(plan.num_new_at_end * surely, first) + student_bytes) > free:
        beside = " beside a checkpoint" if first and student_bytes <= free else ""
        lack = "not one can be saved" if first > free else f"the student has no room{beside}"
        raise SettingError(
            f"{what}: {lack}; make room, or choose another output_dir (in a configuration output.folder)"
        )
    if plan.num_new * saved.checkpoint > free:
        lack = (
            f"the {plan.at_once} checkpoints that lie there at once (save_total_limit="
            f"{args.save_total_limit}, and the newest before the oldest goes)"
        )
    elif plan.num_new_at_end * saved.checkpoint + student_bytes > free:
        lack = f"the student beside the {there + plan.num_new_at_end} checkpoints that are kept"
    else:
        return
    guess = f". The optimizer's bytes are a guess: {saved.guess}" if saved.guess else ""
    warnings.warn(
        f"{what}: that is too little for {lack}; make room, or lower save_total_limit, or save less often"
        f"{guess}",
        TrainingWarning,
        stacklevel=2,
    )


def _what(saved: Saved, saves: Saves, student_bytes: int) -> str:
    parts = f"weights {_amount(saved.weights)}, optimizer {_amount(saved.optimizer)}"
    one = f"a checkpoint takes about {_amount(saved.checkpoint)} ({parts})" if saves.most else ""
    end = f"the student at the end {_amount(student_bytes)}" if student_bytes else ""
    return " and ".join(filter(None, [one, end]))


@dataclass(frozen=True, slots=True)
class _Plan:
    """Checkpoints in the folder as training goes on, and how many of them are more than there are now."""

    at_once: int
    num_new: int
    """Of those that are there at once, while the last one is being saved."""
    num_new_at_end: int


def _plan(args: Any, saves: Saves, there: int) -> _Plan:
    if not saves.most:
        return _Plan(there, 0, 0)
    all_saved = there + saves.most
    if args.save_total_limit is None:
        return _Plan(all_saved, saves.most, saves.most)
    # The best one stays beside the newest, which is itself the best where only such are saved.
    keeps_best = (
        args.metric_for_best_model is not None
        and args.eval_strategy != IntervalStrategy.NO
        and args.save_strategy != SaveStrategy.BEST
    )
    kept = max(args.save_total_limit, 1 + keeps_best)
    at_once = min(all_saved, max(kept, there) + 1)
    return _Plan(at_once, at_once - there, max(0, min(all_saved, kept) - there))


def _bytes_below(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _amount(num_bytes: int) -> str:
    unit, name = next((one for one in _UNITS if num_bytes >= one[0]), _UNITS[-1])
    return f"{num_bytes / unit:,.1f} {name}"


def _state_bytes(args: Any, model: Any, trained: list[Any], optimizer: Any) -> tuple[int, str]:
    """Bytes of the optimizer's state, found by a step of one like it on weights without memory; and, where
    that fails, why they are a guess."""
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
        if getattr(tried, "is_paged", False):  # bitsandbytes' pages are memory, and of the same size
            tried.is_paged = False
        tried.step()
    except Exception as error:  # noqa: BLE001 - optimizers of others fail as they like on such weights
        why = f"{_MOMENTS} values of each weight, as it could not be tried ({type(error).__name__}: {error})"
        return _MOMENTS * _size(trained), why
    state = [value for of_one in tried.state.values() for value in of_one.values()]
    return _size(value for value in state if torch.is_tensor(value)), ""
