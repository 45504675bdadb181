"""Values learned as a distribution over atoms (C51, arXiv 1707.06887), as PAC's critic learns them."""

from __future__ import annotations

import torch
from torch import Tensor

from tql_lightning.nn.value_loss import Bootstrap, ValueLoss, known_range, weighted_mean


class CategoricalProjection(ValueLoss):
    """Cross-entropy to the target critic's distribution, scaled by gamma and shifted by r (C51, arXiv 1707.06887).

    Every atom z_j of the target distribution moves to clip(r + gamma mask z_j, low, high), and its probability is
    split between the two nearest atoms. With several heads the target is the mixture of their distributions (mean), or
    the distribution of the head with the smallest mean (min).

    For a scalar target y, as in IQL, the distribution is a point mass at y.

    Args:
        return_range: Smallest and largest discounted return (taken from the dataset's rewards).
        num_atoms: M, number of atoms, equally spaced from ``low`` to ``high``.
        low: Smallest return; null for that of the data.
        high: Largest return; null for that of the data.

    Raises:
        ValueError: The range is unknown or empty, or ``num_atoms`` is below 2.

    Examples:
        >>> loss = CategoricalProjection(return_range=(-10.0, 0.0), num_atoms=5)
        >>> loss.support
        [-10.0, -7.5, -5.0, -2.5, 0.0]
    """

    atoms: Tensor

    def __init__(
        self,
        return_range: tuple[float, float] | None,
        num_atoms: int = 201,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__()
        if num_atoms < 2:
            raise ValueError(f"CategoricalProjection.num_atoms: expected at least 2, found {num_atoms}")
        self.low, self.high = known_range("CategoricalProjection", return_range, low, high)
        self.register_buffer("atoms", torch.linspace(self.low, self.high, num_atoms), persistent=False)
        self.support = self.atoms.tolist()

    def forward(
        self, values: Tensor, logits: Tensor | None, target: Tensor, row_weights: Tensor | None = None
    ) -> Tensor:
        """See `ValueLoss.forward`."""
        probabilities = self._project(torch.ones_like(target).unsqueeze(-1), target.unsqueeze(-1))
        return self._cross_entropy(logits, probabilities, row_weights)

    def bootstrapped(
        self,
        values: Tensor,
        logits: Tensor | None,
        target: Tensor,
        bootstrap: Bootstrap,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """See `ValueLoss.bootstrapped`."""
        if bootstrap.logits is None:
            raise ValueError("CategoricalProjection: expected a target critic that gives logits, found only values")
        return self._cross_entropy(logits, self.target_probabilities(bootstrap, bootstrap.logits), row_weights)

    @torch.no_grad()
    def target_probabilities(self, bootstrap: Bootstrap, logits: Tensor) -> Tensor:
        """Applies the Bellman backup to the target critic's distribution at (s', a'), (B, E, M) -> (B, M)."""
        probabilities = logits.softmax(dim=-1)
        if bootstrap.aggregation == "mean":
            probabilities = probabilities.mean(dim=1)
        else:
            lowest = bootstrap.values.argmin(dim=1)
            probabilities = probabilities[torch.arange(len(lowest), device=lowest.device), lowest]
        moved = bootstrap.rewards.unsqueeze(-1) + bootstrap.discounts.unsqueeze(-1) * self.atoms
        return self._project(probabilities, moved)

    @torch.no_grad()
    def _project(self, probabilities: Tensor, returns: Tensor) -> Tensor:
        """Projects probabilities (B, m) of returns (B, m) onto the atoms, (B, M)."""
        size = len(self.atoms)
        position = (returns.clamp(self.low, self.high) - self.low) / ((self.high - self.low) / (size - 1))
        projected = share_between_neighbours(probabilities, position.clamp(0, size - 1), size).clamp(min=0.0)
        return projected / (projected.sum(dim=-1, keepdim=True) + 1e-8)

    @staticmethod
    def _cross_entropy(logits: Tensor | None, probabilities: Tensor, row_weights: Tensor | None) -> Tensor:
        if logits is None:
            raise ValueError(
                "CategoricalProjection: expected a critic that gives logits of the atoms, found only values"
            )
        losses = -(probabilities.unsqueeze(1) * logits.log_softmax(dim=-1)).sum(dim=-1)
        return weighted_mean(losses, row_weights)


def share_between_neighbours(weights: Tensor, positions: Tensor, size: int) -> Tensor:
    """Splits each weight between the two integers next to its position, by linear interpolation.

    Args:
        weights: (B, m).
        positions: Positions between 0 and ``size - 1``, (B, m).
        size: M, number of integers.

    Returns:
        Sum of the weights at each integer, (B, M).
    """
    if positions.device.type == "cpu":
        lower = positions.floor()
        index, upper = lower.long(), positions - lower
        out = weights.new_zeros(len(weights), size)
        out.scatter_add_(1, index, weights * (1.0 - upper))
        return out.scatter_add_(1, (index + 1).clamp(max=size - 1), weights * upper)
    # scatter_add_ on a GPU adds in no fixed order; the (B, m, M) shares cost little there.
    numbers = torch.arange(size, dtype=positions.dtype, device=positions.device)
    shares = (1.0 - (positions.unsqueeze(-1) - numbers).abs()).clamp(min=0.0)
    return (weights.unsqueeze(-1) * shares).sum(dim=1)
