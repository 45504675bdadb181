"""Spectral reparametrisation of linear layers (sigma-Reparam, arXiv 2303.06296)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

POWER_ITERATIONS_AT_START = 20


class SigmaReparam(nn.Module):
    """W -> (gamma / sigma(W)) W with sigma(W) the largest singular value and gamma a learned scalar that starts at 1.

    Each forward pass in training updates the singular vectors by one step of power iteration. They are buffers, so
    checkpoints hold them. The gradient flows through sigma.

    Args:
        layer: Layer to reparametrise. A layer that stacks several maps, such as the fused query, key and value, has a
            sigma and a gamma for each of its ``stacked`` maps.

    Examples:
        >>> layer = nn.Linear(4, 2)
        >>> SigmaReparam(layer)(layer.weight).shape
        torch.Size([2, 4])
    """

    left: Tensor
    right: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.stacked: int = getattr(layer, "stacked", 1)
        matrices = self.matrices(layer.weight.detach())
        self.gamma = nn.Parameter(torch.ones(self.stacked))
        self.register_buffer("left", torch.zeros_like(matrices[:, :, 0]))
        self.register_buffer("right", nn.functional.normalize(torch.ones_like(matrices[:, 0]), dim=-1))
        for _ in range(POWER_ITERATIONS_AT_START):
            self.power_iteration(matrices)

    def forward(self, weight: Tensor) -> Tensor:
        """Scales each stacked matrix to spectral norm |gamma|, (stacked * out, in) -> the same shape."""
        matrices = self.matrices(weight)
        if self.training:
            self.power_iteration(matrices.detach())
        # Clones: the next forward pass changes the buffers before this pass's backward pass.
        left, right = self.left.clone(), self.right.clone()
        # No matrix products, here and below: autocast would round the norm to three digits.
        sigma = (left * (matrices * right[:, None, :]).sum(dim=2)).sum(dim=1)
        scaled: Tensor = (self.gamma / sigma)[:, None, None] * matrices
        return scaled.flatten(0, 1)

    def matrices(self, weight: Tensor) -> Tensor:
        """(stacked * out, in) -> (stacked, out, in)."""
        return rearrange(weight, "(s o) i -> s o i", s=self.stacked)

    @torch.no_grad()
    def power_iteration(self, matrices: Tensor) -> None:
        """Moves the buffers one step towards the leading singular vectors of (stacked, out, in)."""
        self.left.copy_(nn.functional.normalize((matrices * self.right[:, None, :]).sum(dim=2), dim=-1))
        self.right.copy_(nn.functional.normalize((matrices * self.left[:, :, None]).sum(dim=1), dim=-1))
