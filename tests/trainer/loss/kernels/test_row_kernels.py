"""The loss's Triton kernels: under the interpreter against float64, and compiled for a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.triton_runs import assert_cases_pass, assert_compiles

CASES = Path(__file__).parent / "row_kernel_cases.py"
COMPILE = """
from tests.triton_compile import PLACES, assembly
from trainer.loss import row_kernels

floats = {"cap": "fp32", "inverse_temperature": "fp32"}
names = ("HAS_BIAS", "HAS_CAP", "TWO_SUMS", "HAS_TOTAL")
plain, whole = (dict.fromkeys(names, flag) | {"BLOCK": row_kernels.BLOCK} for flag in (False, True))
for kernel in (row_kernels._rest_statistics, row_kernels._write_rest_gradient):
    for capability, dtype in PLACES:
        types = floats | {"logits_ptr": f"*{dtype}"}
        options = {"capability": capability, "num_warps": row_kernels.NUM_WARPS}
        text = assembly(kernel, whole, types, aligned=("row_stride", "vocab_size"), **options)
        if capability != "gfx942":
            assert "ld.global.v4" in text  # 16 bytes at a time
            if dtype == "bf16" and kernel is row_kernels._write_rest_gradient:
                assert "cvt.rn.bf16" in text  # rounds; the interpreter cuts off
    assembly(kernel, plain, floats, num_warps=row_kernels.NUM_WARPS)  # rows at any address
print("compiled")
"""


@pytest.mark.slow
def test_kernels_under_the_interpreter():
    assert_cases_pass(CASES)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")
def test_kernels_compile_for_a_gpu(tmp_path):
    assert_compiles(COMPILE, tmp_path)
