"""Settings of how an update is executed, which change its results by rounding at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tql_lightning.training.hyperparameters import require

MatmulPrecision = Literal["highest", "high", "medium"]


@dataclass  # not frozen: Lightning copies settings field by field
class Execution:
    """Compilation, CUDA graphs and precision of matrix products; they change results by rounding at most.

    Args:
        compile: Compile the losses of an update into one graph (``torch.compile``). Pays on GPUs; the first update
            then takes minutes.
        cuda_graphs: Record an update once as a CUDA graph, from loss to optimizer, and replay it. Needs one process on
            a CUDA device. Callbacks then see the previous update's gradients in ``on_before_optimizer_step``, and no
            backward hook is called.
        float32_matmul_precision: Precision of float32 matrix products while a trainer runs: "highest" is float32,
            "high" TF32 on NVIDIA GPUs, "medium" bfloat16. Entropy, softmax, TD targets and temperatures stay float32.

    Raises:
        ValueError: There is no such precision.

    Examples:
        >>> Execution(compile=True)
        Execution(compile=True, cuda_graphs=False, float32_matmul_precision='highest')
    """

    compile: bool = False
    cuda_graphs: bool = False
    float32_matmul_precision: MatmulPrecision = "highest"

    def __post_init__(self) -> None:
        matmul, known = self.float32_matmul_precision, get_args(MatmulPrecision)
        require("execution.float32_matmul_precision", matmul in known, "highest, high or medium", matmul)
