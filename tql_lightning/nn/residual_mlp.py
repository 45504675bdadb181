"""A residual MLP: the other network of floq's release (arXiv 2509.06863)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tql_lightning.nn.initialisation import LayerNorm


class Residual(nn.Sequential):
    """x + layers(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        output = x
        for layer in self:
            output = layer(output)
        return x + output


class ResidualMLP(nn.Sequential):
    """One hidden layer, then residual blocks of hidden layers, then one Linear; (..., in) -> (..., out).

    Weights are Xavier-uniform, biases 0, and gelu has its tanh form, as in `nn.mlp.MLP`.

    Args:
        in_dim: Size of the input.
        hidden_dims: Sizes of the hidden layers of one block; the first and the last are equal.
        out_dim: Size of the output.
        num_blocks: Number of residual blocks.
        layer_norm: Whether hidden layers have a LayerNorm.
        norm_first: Whether the LayerNorm comes before the activation instead of after it.

    Raises:
        ValueError: ``hidden_dims`` is empty, has a size below 1, or begins and ends with different sizes.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        num_blocks: int,
        layer_norm: bool = True,
        norm_first: bool = False,
    ) -> None:
        if not hidden_dims or min(hidden_dims) < 1 or hidden_dims[0] != hidden_dims[-1]:
            raise ValueError(
                "hidden_dims: expected sizes of at least 1 that begin and end with the same one, so that a block's "
                f"output can be added to its input; found {list(hidden_dims)}"
            )
        width = hidden_dims[0]
        first = _activated_layers(in_dim, [width], layer_norm, norm_first)
        blocks = [Residual(*_activated_layers(width, hidden_dims, layer_norm, norm_first)) for _ in range(num_blocks)]
        super().__init__(nn.Sequential(*first), *blocks, nn.Linear(width, out_dim))
        for layer in [module for module in self.modules() if isinstance(module, nn.Linear)]:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def _activated_layers(in_dim: int, sizes: Sequence[int], layer_norm: bool, norm_first: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for size in sizes:
        layers.append(nn.Linear(in_dim, size))
        activation: list[nn.Module] = [nn.GELU(approximate="tanh")]
        norm: list[nn.Module] = [LayerNorm(size)] if layer_norm else []
        layers += norm + activation if norm_first else activation + norm
        in_dim = size
    return layers
