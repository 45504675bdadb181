"""The plain network of the flow policy and of the MLP critic (section 5 of docs/algorithm.md)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tql_lightning.nn.initialisation import LayerNorm
from tql_lightning.nn.linear import Linear


class MLP(nn.Sequential):
    """Hidden layers Linear -> gelu (tanh form) -> LayerNorm, then one Linear; (..., in) -> (..., out).

    Weights are Xavier-uniform, biases 0. The LayerNorm follows the activation, as in the release.

    Args:
        in_dim: Size of the input.
        hidden_dims: Sizes of the hidden layers.
        out_dim: Size of the output.
        layer_norm: Whether the hidden layers end in a LayerNorm.

    Raises:
        ValueError: There is no hidden layer, or the size of one is below 1.
    """

    def __init__(self, in_dim: int, hidden_dims: Sequence[int], out_dim: int, layer_norm: bool = True) -> None:
        if not hidden_dims or min(hidden_dims) < 1:
            raise ValueError(f"hidden_dims: expected one or more sizes of at least 1, found {list(hidden_dims)}")
        layers: list[nn.Module] = []
        for size in hidden_dims:
            layers += [Linear(in_dim, size), nn.GELU(approximate="tanh")]
            if layer_norm:
                layers.append(LayerNorm(size))
            in_dim = size
        layers.append(Linear(in_dim, out_dim))
        super().__init__(*layers)
        for layer in self.linear_layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def linear_layers(self) -> list[nn.Linear]:
        """The linear layers from input to output."""
        return [layer for layer in self if isinstance(layer, nn.Linear)]

    @property
    def norm_layers(self) -> list[nn.LayerNorm]:
        """The LayerNorms from input to output; empty without ``layer_norm``."""
        return [layer for layer in self if isinstance(layer, nn.LayerNorm)]
