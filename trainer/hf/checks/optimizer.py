"""Whether optimizer, schedule and precision can be, before anything is trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.training_args import OptimizerNames

from trainer.errors import SettingError

_TRIED_STEPS = 1000
_TRIED_VALUES = ("0.123", "7", "true", "false", "?")
"""Values with which an argument of the optimizer is tried: it is read if one of them makes a difference."""
_OF_LAYERS = ("galore", "apollo")
"""Beginnings of the optimizers that take `optim_target_modules`."""


def check_optimizer_name(args: Any) -> None:
    """Raises ValueError for an optimizer that transformers does not have."""
    known = [name.value for name in OptimizerNames]
    if args.optim not in known:
        raise ValueError(
            f"optim={args.optim!r} (in a configuration training.optimizer) is not an optimizer of "
            f"transformers; it has {', '.join(known)}"
        )


def check_optimizer(args: Any, model: Any) -> None:
    """Raises SettingError for an optimizer or its arguments that cannot be, or would be ignored."""
    name = _plain(args.optim)
    named = f"optim={name!r} (in a configuration training.optimizer)"
    given = f"optim_args={args.optim_args!r} (in a configuration training.optimizer_args)"
    arguments = [part.partition("=") for part in (args.optim_args or "").replace(" ", "").split(",") if part]
    if not all(argument and equals and "=" not in value for argument, equals, value in arguments):
        raise SettingError(
            f"{given} is not of the form 'name=value,name=value'; write it so, or leave it out"
        )
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, model)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        whole = f"{named}, {given}" if arguments else named
        raise SettingError(
            f"{whole} cannot be made: {error}; correct it, install what it needs, or take another"
        ) from error
    unread = [argument for argument, _, _ in arguments if not _reads(args, model, argument)]
    if unread:
        raise SettingError(f"{given}: {name} does not read {', '.join(unread)}; leave it out")
    if args.optim_target_modules is not None and not name.startswith(_OF_LAYERS):
        raise SettingError(
            f"optim_target_modules={args.optim_target_modules!r} is read by GaLore and APOLLO alone, not by "
            f"{name}; leave it out"
        )


def _plain(name: Any) -> str:
    return str(getattr(name, "value", name))


def _reads(args: Any, model: Any, name: str) -> bool:
    def made(optim_args: str | None) -> str:
        tried = copy.copy(args)
        tried.optim_args = optim_args
        try:
            return repr(Trainer.get_optimizer_cls_and_kwargs(tried, model))
        except (ValueError, TypeError, AttributeError) as error:
            return repr(error)

    without = made(None)
    return any(made(f"{name}={value}") != without for value in _TRIED_VALUES)


def check_schedule(args: Any) -> None:
    """Raises SettingError for a schedule whose arguments are missing, or not its own."""
    name = _plain(args.lr_scheduler_type)
    if name == "constant" and (args.lr_scheduler_kwargs or args.warmup_steps):
        raise SettingError(
            f"lr_scheduler_type='constant' (in a configuration training.schedule) reads neither "
            f"lr_scheduler_kwargs={args.lr_scheduler_kwargs or {}} nor warmup_steps={args.warmup_steps}; "
            "leave them out, or take 'constant_with_warmup'"
        )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(_TRIED_STEPS),
            num_training_steps=_TRIED_STEPS,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
    except (ValueError, TypeError) as error:
        raise SettingError(
            f"lr_scheduler_type={name!r} with lr_scheduler_kwargs={args.lr_scheduler_kwargs or {}} (in a "
            f"configuration training.schedule and training.schedule_args) cannot be: {error}"
        ) from error
