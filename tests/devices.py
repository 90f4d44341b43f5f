"""The devices that a test runs on: the CPU always, a GPU under the mark `gpu` and where there is one."""

from __future__ import annotations

import pytest
import torch

no_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"
)
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])
DEVICES = ["cpu", GPU]
"""For tests whose body is the same on both, so that it is no dead code where there is no GPU."""
