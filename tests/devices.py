"""The devices that a test runs on: the CPU always, a GPU under the mark `gpu` and where there is one.

What memory a GPU would need is counted on "meta", where tensors have sizes and no numbers.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

no_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"
)
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])
DEVICES = ["cpu", GPU]
"""For tests whose body is the same on both, so that it is no dead code where there is no GPU."""


def give_back_gpu_memory() -> None:
    """What this process's tests have left of a GPU's memory, for an engine that takes most of it."""
    gc.collect()
    torch.cuda.empty_cache()


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within and still held."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {
            tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if is_tensor(tensor)
        }
        for tensor in filter(is_tensor, tree_leaves(made)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.held:
                self.held[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.held.pop, storage._cdata)
        self.most = max(self.most, sum(self.held.values()))
        return made


def is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)
