"""The value network V(s) of IQL and IFQL, as in FQL's release (arXiv 2502.02538)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tql_lightning.nn.mlp import MLP


class ValueNetwork(nn.Module):
    """V(s), a plain MLP over the observation.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        hidden_dims: Sizes of the hidden layers.
        layer_norm: Whether hidden layers end in a LayerNorm.

    Raises:
        ValueError: There is no hidden layer, or the size of one is below 1.

    Examples:
        >>> ValueNetwork(3, hidden_dims=[32])(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self, observation_dim: int, hidden_dims: Sequence[int] = (512, 512, 512, 512), layer_norm: bool = True
    ) -> None:
        super().__init__()
        self.network = MLP(observation_dim, hidden_dims, 1, layer_norm)

    def forward(self, observations: Tensor) -> Tensor:
        """(..., n_s) -> (...)."""
        value: Tensor = self.network(observations)
        return value.squeeze(-1)
