"""Triton kernels compiled for GPUs that are not there. Imports triton: only programs of their own import this."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

PLACES = [(90, "fp32"), (90, "bf16"), (90, "fp16"), (80, "bf16"), (120, "bf16"), ("gfx942", "bf16")]
"""Devices and dtypes of logits: H100 and H200, A100, RTX PRO 6000, and AMD's MI300."""


def assembly(
    kernel: Any,
    constants: dict[str, Any],
    types: dict[str, str],
    *,
    capability: int | str = 90,
    num_warps: int = 4,
    aligned: tuple[str, ...] = (),
) -> str:
    """PTX, or AMD's for a name such as "gfx942", as a launch compiles it whose pointers are all aligned.

    Arguments have the `types` of their names, else float32 pointers and int32; the `aligned` ones are divisible
    by 16. Scratch memory and float64 would mean that registers spill or a constant is of the wrong type.
    """
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        is_pointer = name.endswith("_ptr")
        if name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = types.get(name, "*fp32" if is_pointer else "i32")
        if is_pointer or name in aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    is_cuda = isinstance(capability, int)
    target = GPUTarget("cuda", capability, 32) if is_cuda else GPUTarget("hip", capability, 64)
    source = ASTSource(kernel, signature, constants, attributes)
    text = triton.compile(source, target=target, options={"num_warps": num_warps}).asm[
        "ptx" if is_cuda else "amdgcn"
    ]
    assert kernel.__name__ in text
    if is_cuda:
        assert "__local_depot" not in text
        assert ".f64" not in text
    return text
