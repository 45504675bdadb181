"""Tokens of one scalar each, kept as factors to speed up their first normalisation and linear layer.

A token is affine in its scalar, x * direction + offset. After LayerNorm it is still a combination of three vectors that
the batch shares. A linear map is therefore applied to those (3 n rows) instead of every token (B n rows), forward and
backward. The result is the same up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class FactoredTokens(NamedTuple):
    """Tokens of low rank: token i of batch row b is features[b, i] @ basis[i].

    Attributes:
        features: (B, n, r), at least float32, as the rounding error of a feature affects its whole token.
        basis: (n, r, H), in the number type of the tokens.
    """

    features: Tensor
    basis: Tensor

    def dense(self) -> Tensor:
        """Multiplies out the tokens, (B, n, H)."""
        with torch.autocast(self.features.device.type, enabled=False):
            tokens = torch.bmm(self.features.transpose(0, 1), self.basis.to(self.features.dtype))
        return tokens.transpose(0, 1).to(self.basis.dtype)

    def linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Applies a linear layer to the tokens, (B, n, H) -> (B, n, out).

        Args:
            weight: (out, H).
            bias: (out,).
        """
        with torch.autocast(self.features.device.type, enabled=False):
            wide = self.features.dtype
            basis = self.basis.to(wide) @ weight.to(wide).t()
            constant = torch.cat([torch.zeros_like(basis[:, :-1]), bias.expand(len(basis), 1, -1)], dim=1)
            return FactoredTokens(self.features, basis + constant).dense().to(self.basis.dtype)


class ScalarTokens(NamedTuple):
    """Tokens scalar * direction + offset.

    Attributes:
        scalars: (B, n).
        directions: (n, H).
        offsets: (n, H).
    """

    scalars: Tensor
    directions: Tensor
    offsets: Tensor

    def dense(self) -> Tensor:
        """Multiplies out the tokens, (B, n, H)."""
        return torch.addcmul(self.offsets, self.scalars.unsqueeze(-1), self.directions)

    def layer_norm(self, norm: nn.LayerNorm) -> FactoredTokens:
        """Applies a LayerNorm over H with weight and bias to the tokens; the last feature is 1.

        The component of the offset along the direction moves into the scalar, so that the variance loses no digits
        where scalar and offset cancel. The tokens are the same whatever the component, so it needs no gradient. Like
        torch's own LayerNorm this computes at least in float32: squares of scalars overflow float16.
        """
        scalars, directions, offsets = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in self)
        directions, offsets = (x - x.mean(dim=-1, keepdim=True) for x in (directions, offsets))
        power = directions.square().sum(dim=-1)
        smallest = torch.finfo(power.dtype).tiny ** 0.5
        shift = ((directions * offsets).sum(dim=-1) / power.clamp(min=smallest)).detach()
        offsets = offsets - shift.unsqueeze(-1) * directions
        scalars = scalars + shift
        total = scalars.square() * power + 2.0 * scalars * (directions * offsets).sum(dim=-1)
        variance = (total + offsets.square().sum(dim=-1)) / directions.shape[-1]
        scale = (variance + norm.eps).rsqrt()
        features = torch.stack([scalars * scale, scale, torch.ones_like(scale)], dim=-1)
        basis = torch.stack([directions * norm.weight, offsets * norm.weight, norm.bias.expand_as(directions)], dim=1)
        return FactoredTokens(features, basis.to(self.directions.dtype))


def normalise(norm: nn.Module, tokens: Tensor | ScalarTokens) -> Tensor | FactoredTokens:
    """Normalises tokens; keeps the factors for LayerNorm with weight and bias."""
    if isinstance(tokens, Tensor):
        normalised: Tensor = norm(tokens)
        return normalised
    if isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None:
        return tokens.layer_norm(norm)
    return normalise(norm, tokens.dense())


def dense(tokens: Tensor | FactoredTokens | ScalarTokens) -> Tensor:
    """Multiplies out tokens (B, n, H) that are kept as factors."""
    return tokens if isinstance(tokens, Tensor) else tokens.dense()
