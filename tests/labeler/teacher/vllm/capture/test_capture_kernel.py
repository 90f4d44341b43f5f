"""The capture's Triton kernel: under the interpreter against the reference, and compiled for a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.triton_runs import assert_cases_pass, assert_compiles

CASES = [Path(__file__).parent / f"capture_kernel_{name}.py" for name in ("cases", "edges")]
COMPILE = """
from labeler.teacher.vllm.capture import capture_kernel as sizes, kernels
from tests.triton_compile import PLACES, assembly

rows = ("row_stride", "vocab_size")
types = {"label_ids_ptr": "*i64", "counts_ptr": "*i32", "keys_ptr": "*i64", "groups_ptr": "*i64"}
groups = {"GROUP": sizes.GROUP}
columns = groups | {"CHOSEN_GROUPS": sizes.CHOSEN_GROUPS}
statistics = groups | {"PROGRAM_GROUPS": sizes.PROGRAM_GROUPS, "NUM_TEMPERATURES": 3, "SQUARED": 3}
masses = {"NUM_TEMPERATURES": 3, "HEAD_BLOCK": 64, "BLOCK": sizes.MASS_BLOCK}
for capability, dtype in PLACES:
    given = types | {"logits_ptr": f"*{dtype}"}
    for kernel, constants in ((kernels.group_statistics_kernel, statistics), (kernels.group_columns_kernel, columns)):
        text = assembly(kernel, constants, given, capability=capability, aligned=rows)
        assert capability == "gfx942" or "ld.global.v4" in text, (kernel, dtype)  # 16 bytes at a time
    assembly(kernels.tail_masses_kernel, masses, {}, capability=capability)
for temperatures, head in ((1, 1), (8, 256)):
    constants = statistics | {"NUM_TEMPERATURES": temperatures, "SQUARED": 0}
    assembly(kernels.group_statistics_kernel, constants, types)  # rows at any address
    assembly(kernels.tail_masses_kernel, masses | {"NUM_TEMPERATURES": temperatures, "HEAD_BLOCK": head}, {})
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_kernels_under_the_interpreter(cases: Path):
    assert_cases_pass(cases)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")
def test_kernel_compiles_for_a_gpu(tmp_path):
    assert_compiles(COMPILE, tmp_path)
