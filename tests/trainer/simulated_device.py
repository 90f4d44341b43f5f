"""A second device in CPU memory: it computes as the CPU does, and refuses what a GPU refuses.

Where there is no GPU, code that was only run on the CPU may mix tensors of two devices, hand a GPU's tensor to
NumPy, or wait for the device at each of many small values; none of it shows, since all tensors lie in one memory.
Here they lie on two: PyTorch's "PrivateUse1" device, with tensors that wrap those of the CPU. Each wait of the host
for the device is counted under the line that causes it.

Importing this makes the device the accelerator of the process (`torch.accelerator`), so it is done in processes of
their own alone. Beside it stand the tests marked `gpu`, which run the same bodies on a real one: what it cannot show
is speed, streams, kernels and autocast.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import TrainingArguments

NAME = "simulated"
"""The device's name, in "device.type" too."""
OURS = tuple(str(Path(__file__).parents[2] / name) for name in ("trainer", "labeler"))

aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
"""Take their indices from either device."""
WAITING = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
)
"""Give the host a value or a size that only the device knows."""

waits: Counter[str] = Counter()
"""Waits of the host since the last `waits.clear()`, by the line of ours that asks for what it waits for."""


class _Module(backend_registration._DummyBackendModule):
    """What PyTorch and transformers ask of `torch.<device>`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """The numbers are the CPU's."""

    def manual_seed(self, seed: int) -> None:
        """The numbers are the CPU's."""

    def get_device_name(self, device: Any = None) -> str:
        return NAME


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)


class OnDevice(torch.Tensor):
    """A tensor of the device, around one of the CPU."""

    on_cpu: torch.Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    def __new__(cls, on_cpu: torch.Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=DEVICE,
        )
        made.on_cpu = on_cpu
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.on_cpu})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return OnDevice, (self.on_cpu,)

    def untyped_storage(self) -> Any:
        return self.on_cpu.untyped_storage()

    def tolist(self) -> Any:
        waits[_asking_line()] += 1
        return self.on_cpu.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")


class _Everywhere(TorchDispatchMode):
    """Takes calls that have no tensor of the device and name it, such as torch.zeros(..., device=...)."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


@contextmanager
def on_device() -> Iterator[None]:
    """Within, transformers trains on the device."""
    with (
        patch.object(TrainingArguments, "device", property(_device_of)),
        patch.object(Accelerator, "device", property(lambda _: DEVICE)),
        _Everywhere(),
    ):
        yield


def _device_of(arguments: TrainingArguments) -> torch.device:
    assert arguments._setup_devices is not None  # makes the process's state, which others read
    return DEVICE


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A call on the tensors within, its result on the device where a GPU would leave it there."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    there = [one for one in tensors if isinstance(one, OnDevice)]
    here = [one for one in tensors if not isinstance(one, OnDevice) and one.dim() > 0]
    stays = bool(there)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == NAME
        moves_off = bool(there) and torch.device(kwargs["device"]).type == "cpu"
        waits.update([_asking_line()] if moves_off else [])
        kwargs = {**kwargs, "device": torch.device("cpu") if stays else kwargs["device"]}
        kwargs.pop("pin_memory", None)
    elif function is aten.copy_.default:
        stays = isinstance(args[0], OnDevice)
        waits.update([] if stays else [_asking_line()])
    elif there and here and function not in INDEXING:
        raise RuntimeError(f"Expected all tensors to be on the same device: {function} has some of two")
    if there and (function in WAITING or (function in INDEXING and _has_mask(args[1]))):
        waits[_asking_line()] += 1
    wrapped = {id(one.on_cpu): one for one in there}  # what is changed in place is given back itself
    found = function(
        *tree_map(lambda one: one.on_cpu if isinstance(one, OnDevice) else one, args),
        **tree_map(lambda one: one.on_cpu if isinstance(one, OnDevice) else one, kwargs),
    )

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, OnDevice):
            return value
        known = wrapped.get(id(value))
        if known is not None:
            return known
        return OnDevice(value) if stays else value

    return tree_map(wrap, found)


def _has_mask(indices: Any) -> bool:
    return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in indices)


def _asking_line() -> str:
    """The innermost line of ours on the stack."""
    for frame in reversed(traceback.extract_stack(limit=60)):
        if frame.filename.startswith(OURS):
            return f"{Path(frame.filename).name}: {frame.line}"
    return "others"


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> OnDevice:
    return OnDevice(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> OnDevice:
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    on_cpu = source.on_cpu if isinstance(source, OnDevice) else source
    if isinstance(target, OnDevice):
        target.on_cpu.copy_(on_cpu)
    else:
        waits[_asking_line()] += 1
        target.copy_(on_cpu)
    return target


_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")
torch.__future__.set_swap_module_params_on_conversion(True)  # else tied weights part on their way
