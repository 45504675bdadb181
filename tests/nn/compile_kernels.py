"""Compiles both kernels, as they are launched, for NVIDIA GPUs that need not be there.

    python tests/nn/compile_kernels.py 80 90
    python tests/nn/compile_kernels.py largest 80 90

The arguments are compute capabilities, times ten. Prints the bytes of shared memory that each kernel takes: for the
tokens and heads of a usual critic and for the smallest, or for the largest in bfloat16, TF32 and float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tql_lightning.nn import triton_attention
from tql_lightning.nn.attention import KERNEL_HEAD_DIM, MAX_PLAIN_TOKENS


class AbsentDevice:
    """What Triton asks of a device before it launches anything."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


class Compiled:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            compiled = self.kernel.warmup(*arguments, grid=grid, **constants)
            assert compiled.asm["cubin"]
            print(compiled.metadata.shared)

        return launch


def compile_kernels(batch: int, heads: int, tokens: int, size: int, num_attended: int, dtype: torch.dtype) -> None:
    """Both passes with the strides that they meet: a fused projection's, and a sum's gradient."""
    fused = torch.empty(batch, tokens, 3, heads, size, dtype=dtype)
    q, k, v = fused.permute(2, 0, 3, 1, 4).unbind(0)
    attended, entropy = triton_attention._empty_outputs(q, k, v, num_attended)
    triton_attention._run(Compiled(triton_attention._forward_kernel), (q, k, v, attended, entropy), num_attended)
    gradients = [torch.empty((), dtype=x.dtype).expand_as(x) for x in (attended, entropy)]
    results = [x.contiguous() for x in (q, k, v)]
    triton_attention._run(Compiled(triton_attention._backward_kernel), (q, k, v, *gradients, *results), num_attended)


if __name__ == "__main__":
    largest = sys.argv[1] == "largest"
    for capability in map(int, sys.argv[1 + largest :]):
        driver.set_active(AbsentDevice(capability))
        if not largest:
            compile_kernels(2, 4, 43, 32, 43, torch.bfloat16)
            continue
        for precision, dtype in (("highest", torch.bfloat16), ("high", torch.float32), ("highest", torch.float32)):
            torch.set_float32_matmul_precision(precision)
            compile_kernels(2, 4, MAX_PLAIN_TOKENS, KERNEL_HEAD_DIM, MAX_PLAIN_TOKENS, dtype)
    if not largest:
        compile_kernels(1, 1, 1, 1, 0, torch.float32)  # sizes and strides of 1 become constants
