"""The loss's Triton kernels: under the interpreter against float64, and compiled for a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.triton_runs import assert_cases_pass, assert_compiles

CASES = Path(__file__).parent / "row_kernel_cases.py"
COMPILE = """
import itertools

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trainer.loss import row_kernels

floats = ("cap", "inverse_temperature")
for kernel in (row_kernels._rest_statistics, row_kernels._write_rest_gradient):
    for dtype, flag in itertools.product(("fp32", "bf16", "fp16"), (False, True)):
        constants = {"HAS_BIAS": flag, "HAS_CAP": flag, "TWO_SUMS": flag, "HAS_TOTAL": flag, "BLOCK": 4096}
        signature = {}
        for name in kernel.arg_names:
            if name in constants:
                signature[name] = "constexpr"
            elif name == "logits_ptr":
                signature[name] = f"*{dtype}"
            elif name.endswith("_ptr"):
                signature[name] = "*fp32"
            else:
                signature[name] = "fp32" if name in floats else "i32"
        source = ASTSource(kernel, signature, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        assert f".visible .entry {kernel.__name__}" in compiled.asm["ptx"]
        if dtype == "bf16" and kernel is row_kernels._write_rest_gradient:
            assert "cvt.rn.bf16" in compiled.asm["ptx"]  # rounds; the interpreter cuts off
print("compiled")
"""


@pytest.mark.slow
def test_kernels_under_the_interpreter():
    assert_cases_pass(CASES)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")
def test_kernels_compile_for_a_gpu(tmp_path):
    assert_compiles(COMPILE, tmp_path)
