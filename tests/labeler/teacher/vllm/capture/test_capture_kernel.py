"""The capture's Triton kernel: under the interpreter against the reference, and compiled for a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.triton_runs import assert_cases_pass, assert_compiles

CASES = [Path(__file__).parent / f"capture_kernel_{name}.py" for name in ("cases", "edges")]
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from labeler.teacher.vllm.capture_kernel import _group_statistics as kernel

pointers = {"label_ids_ptr": "*i64", "counts_ptr": "*i32"}
constants = {"NUM_TEMPERATURES": 3, "SQUARED": 6, "PROGRAM_GROUPS": 32, "GROUP": 64}
for dtype in ("fp32", "bf16", "fp16"):
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name == "logits_ptr":
            signature[name] = f"*{dtype}"
        else:
            signature[name] = pointers.get(name, "*fp32" if name.endswith("_ptr") else "i32")
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert ".visible .entry _group_statistics" in compiled.asm["ptx"]
print("compiled")
"""


@pytest.mark.slow
def test_kernel_under_the_interpreter():
    assert_cases_pass(*CASES)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")
def test_kernel_compiles_for_a_gpu(tmp_path):
    assert_compiles(COMPILE, tmp_path)
