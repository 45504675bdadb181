"""The kernels on the CPU, through Triton's interpreter, and compiled for GPUs that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tql_lightning.nn.attention import HAS_TRITON, EntropyAttention

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton: pip install triton")


def run_python(*arguments: str, **environment: str) -> str:
    """What a fresh Python prints; fails with that if it fails."""
    process = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        check=False,
    )
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-5000:]
    return process.stdout


@pytest.mark.slow
@needs_triton
def test_the_kernels_pass_every_implementations_tests_through_the_interpreter() -> None:
    tests = [str(HERE / "test_attention_implementations.py"), str(HERE / "test_attention_choice.py")]
    output = run_python("-m", "pytest", *tests, "-p", "no:cacheprovider", TRITON_INTERPRET="1")
    assert "passed" in output


@pytest.mark.slow
@needs_triton
def test_the_kernels_compile_to_machine_code_for_nvidia_gpus(tmp_path: Path) -> None:
    """For 43 tokens and heads of 32 in bfloat16, and for the smallest; several programs fit on chip at once."""
    shared = run_python(str(HERE / "compile_kernels.py"), "80", "90", TRITON_CACHE_DIR=str(tmp_path)).split()
    assert len(shared) == 6
    assert max(map(int, shared)) <= 48 * 1024


@pytest.mark.slow
@needs_triton
def test_the_largest_kernels_compile_and_fit_on_chip_as_docs_attention_says() -> None:
    shared = [int(x) for x in run_python(str(HERE / "compile_kernels.py"), "largest", "80", "90").split()]
    assert len(shared) == 12
    bfloat16, tf32, float32 = (max(shared[i : i + 2] + shared[i + 6 : i + 8]) for i in (0, 2, 4))
    assert max(bfloat16, float32) <= 99 * 1024 < tf32 <= 163 * 1024


def test_on_a_cpu_the_kernels_refuse_and_say_what_to_choose() -> None:
    if not HAS_TRITON:
        with pytest.raises(ValueError, match="triton is not installed"):
            EntropyAttention(12, 3, implementation="triton")
        return
    attention = EntropyAttention(12, 3, implementation="triton")
    with pytest.raises(ValueError, match="triton needs tensors on a CUDA device, found cpu; choose auto"):
        attention(torch.zeros(1, 5, 12))
    with pytest.raises(ValueError, match="triton takes up to 128 tokens"):
        attention(torch.zeros(1, 129, 12))
