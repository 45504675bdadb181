"""Compiles both kernels for NVIDIA GPUs that need not be there; prints the bytes of shared memory each takes.

    python tests/nn/compile_kernels.py 80 90

The arguments are compute capabilities, times ten.
"""

from __future__ import annotations

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tql_lightning.nn import triton_attention


def compile_kernel(kernel: triton.JITFunction, capability: int) -> int:
    """Bytes of shared memory."""
    constants = triton_attention._constants(torch.bfloat16, num_keys=43, size=32)
    num_warps = constants.pop("num_warps")
    signature: dict[str, str | tuple[str, ...]] = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("strides"):
            signature[name] = ("i32", "i32", "i32")
        elif name.endswith("entropy"):
            signature[name] = "*fp32"
        elif name == "scale":
            signature[name] = "fp32"
        elif name in ("heads", "size") or name.startswith("num_"):
            signature[name] = "i32"
        else:
            signature[name] = "*bf16"
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    assert compiled.asm["cubin"]
    shared: int = compiled.metadata.shared
    return shared


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:]):
        for kernel in (triton_attention._forward_kernel, triton_attention._backward_kernel):
            print(compile_kernel(kernel, capability))
