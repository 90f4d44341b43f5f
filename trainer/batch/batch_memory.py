"""Memory for the tensors of a batch: in a DataLoader's worker, one block that its consumer shares."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor by name."""

_ALIGNMENT_BYTES = 64


def zeros(layout: Layout) -> dict[str, Tensor]:
    """Tensors full of zeros.

    What a worker hands over must lie in shared memory, and each piece of that is opened, sent and mapped on
    its own. So there all of a batch is one piece, which is filled where it lies instead of copied at the end.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in layout.items()}
    if get_worker_info() is None:
        pieces = {name: torch.from_numpy(np.zeros(size, dtype=np.uint8)) for name, size in sizes.items()}
    else:
        pieces = _shared_pieces(sizes)
    return {name: pieces[name].view(dtype).view(shape) for name, (shape, dtype) in layout.items()}


def _shared_pieces(sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Zeros, uint8, of one new block of shared memory."""
    padded = [-(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for size in sizes.values()]
    block = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(sum(padded)))  # noqa: SLF001
    pieces = block.split(padded)
    return {name: piece[:size] for (name, size), piece in zip(sizes.items(), pieces, strict=True)}
