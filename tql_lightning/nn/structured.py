"""Linear maps with fewer weights than a dense matrix: low-rank, block-dense and block-shuffle.

From arXiv 2407.09835 (low-rank) and arXiv 2406.16450 (all three, and self-guided training). In shapes n is the number
of inputs, m of outputs, r the rank and k the number of blocks.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from einops import rearrange
from torch import Tensor, einsum, nn
from torch.nn.functional import linear

from tql_lightning.nn.initialisation import lecun_normal_

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class SelfGuide:
    """Self-guided training: a dense matrix W supports the factors S and fades out (arXiv 2406.16450).

    The map is rho W x + (1 - rho) S x, where rho falls from 1 to 0. W starts as the product of the factors. At the
    first update rho is 1 and the factors get no gradient. Every pass computes W until rho is 0. The paper's runs skip
    it in a random share 1 - rho of the passes; a random number inside the network would break exact replay.

    Args:
        updates: Number of updates until rho is 0; the paper uses half of training, or as many as match a dense run's
            cost.
        form: Schedule of rho: "linear", or "cosine" (half a wave).

    Raises:
        ValueError: ``updates`` is below 1 or ``form`` is unknown.

    Examples:
        >>> LowRankLinear(32, 64, guide=SelfGuide(updates=1000))(torch.zeros(5, 32)).shape
        torch.Size([5, 64])
    """

    updates: int
    form: Literal["linear", "cosine"] = "cosine"

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError(f"guide.updates: expected at least 1, found {self.updates}")
        if self.form not in ("linear", "cosine"):
            raise ValueError(f"guide.form: expected 'linear' or 'cosine', found {self.form!r}")

    def share(self, updates: Tensor) -> Tensor:
        """Computes rho after a number of updates; both are scalars."""
        progress = (updates.float() / self.updates).clamp(max=1.0)
        return 1.0 - progress if self.form == "linear" else (1.0 + torch.cos(math.pi * progress)) / 2.0


class StructuredLinear(nn.Module, ABC):
    """A linear map (..., n) -> (..., m) whose matrix is a product of factors, with a dense bias that starts at 0.

    A guide needs a call of `advance_guides` after every optimizer step; the project's training makes it. The number of
    updates is a buffer, so that a resumed run continues exactly. Checkpoints omit a guide that is over.

    Args:
        in_features: n.
        out_features: m.
        guide: Self-guided training; None for the factors alone.
    """

    updates: Tensor

    def __init__(self, in_features: int, out_features: int, guide: SelfGuide | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.schedule = in_features, out_features, guide
        self.make_factors()
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.guide: nn.Parameter | None = None
        self.guide_in_graph = guide is not None  # whether passes compute the guide, even at share 0
        self._updates_done = 0  # the buffer's value, read without a device synchronisation
        if guide is not None:
            self.guide = nn.Parameter(self.matrix().detach().clone())
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def make_factors(self) -> None:
        """Creates the factors as parameters with their initial values."""

    @abstractmethod
    def structured(self, x: Tensor) -> Tensor:
        """Applies the factors alone, without bias: (..., n) -> (..., m)."""

    def matrix(self) -> Tensor:
        """Computes the product of the factors, (m, n)."""
        factor = next(self.parameters())
        return self.structured(torch.eye(self.in_features, device=factor.device, dtype=factor.dtype)).T

    def guide_share(self) -> Tensor:
        """Computes rho, a scalar; only with a guide."""
        assert self.schedule is not None
        return self.schedule.share(self.updates)

    @property
    def guide_is_over(self) -> bool:
        """Whether the guide's share has reached 0."""
        return self.schedule is not None and self._updates_done >= self.schedule.updates

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., m)."""
        output = self.structured(x)
        if self.guide is not None and self.guide_in_graph:
            share = self.guide_share()
            output = share * linear(x, self.guide) + (1.0 - share) * output
        return output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        """Returns the sizes and the shapes of both factors."""
        shapes = [tuple(self.get_parameter(name).shape) for name in ("first", "second")]
        return f"in_features={self.in_features}, out_features={self.out_features}, factors={shapes}"

    def advance(self, may_leave_out: bool) -> None:
        """Counts an update of a guided map; see `advance_guides`."""
        self.updates.add_(1)
        self._updates_done += 1
        self.guide_in_graph = self.guide_in_graph and not (may_leave_out and self.guide_is_over)

    def merged(self) -> nn.Linear:
        """Returns a detached dense layer that computes the same."""
        layer = nn.Linear(self.in_features, self.out_features, device=self.bias.device, dtype=self.bias.dtype)
        weight = self.matrix().detach()
        if self.guide is not None and not self.guide_is_over:
            share = self.guide_share()
            weight = share * self.guide.detach() + (1.0 - share) * weight
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(self.bias)
        return layer

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.guide_is_over:
            del destination[f"{prefix}guide"]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if self.guide is not None and f"{prefix}updates" in state_dict:
            self._updates_done = int(state_dict[f"{prefix}updates"])
            self.guide_in_graph = not self.guide_is_over
            if self.guide_is_over:
                state_dict = {f"{prefix}guide": torch.zeros_like(self.guide), **state_dict}
        super()._load_from_state_dict(state_dict, prefix, *args)


class LowRankLinear(StructuredLinear):
    """W2 W1 x with W1 (r, n) and W2 (m, r): r (n + m) weights instead of n m.

    Starts as the best rank-r approximation of a dense layer's initial weights, with balanced factors (spectral
    initialisation); at full rank it equals the dense layer.

    Args:
        in_features: n.
        out_features: m.
        rank_ratio: r divided by the smaller of n and m, above 0 and at most 1.
        guide: Self-guided training; null for the factors alone.

    Raises:
        ValueError: ``rank_ratio`` is out of range.

    Examples:
        >>> LowRankLinear(32, 64, rank_ratio=0.25)(torch.zeros(5, 32)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self, in_features: int, out_features: int, rank_ratio: float = 0.25, guide: SelfGuide | None = None
    ) -> None:
        self.rank = _rank(rank_ratio, min(in_features, out_features), 1)
        super().__init__(in_features, out_features, guide)

    def make_factors(self) -> None:
        """See `StructuredLinear`."""
        dense = lecun_normal_(nn.Linear(self.in_features, self.out_features)).weight
        first, second = spectral_factors(dense.detach(), self.rank)
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)

    def structured(self, x: Tensor) -> Tensor:
        """See `StructuredLinear`."""
        return linear(linear(x, self.first), self.second)


class BlockDenseLinear(StructuredLinear):
    """A block-diagonal matrix to r features, then a dense one: r n / k + r m weights.

    Both factors start semi-orthogonal, with spectral norm 1 at any width (orthonormal initialisation).

    Args:
        in_features: n, a multiple of ``num_blocks``.
        out_features: m.
        rank_ratio: r divided by the smaller of n and m, above 0 and at most 1; r is rounded to a multiple of
            ``num_blocks``.
        num_blocks: k.
        guide: Self-guided training; null for the factors alone.

    Raises:
        ValueError: ``rank_ratio`` is out of range or ``num_blocks`` does not divide n.

    Examples:
        >>> BlockDenseLinear(32, 64, num_blocks=2)(torch.zeros(5, 32)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank_ratio: float = 0.5,
        num_blocks: int = 2,
        guide: SelfGuide | None = None,
    ) -> None:
        _require_divisor(num_blocks, in_features)
        self.rank, self.num_blocks = _rank(rank_ratio, min(in_features, out_features), num_blocks), num_blocks
        super().__init__(in_features, out_features, guide)

    def make_factors(self) -> None:
        """See `StructuredLinear`."""
        k = self.num_blocks
        self.first = _orthonormal(k, self.rank // k, self.in_features // k)
        self.second = _orthonormal(self.out_features, self.rank)

    def structured(self, x: Tensor) -> Tensor:
        """See `StructuredLinear`."""
        return linear(_blocks(x, self.first).flatten(-2), self.second)


class BlockShuffleLinear(StructuredLinear):
    """Two block-diagonal matrices with a shuffle between them (a Monarch matrix): q (n + m) weights, q = min(n, m) / k.

    The second factor's block j reads every k-th entry of the first one's output, from entry j on. Both factors start
    semi-orthogonal, with spectral norm 1 at any width (orthonormal initialisation).

    Args:
        in_features: n, a multiple of ``num_blocks``.
        out_features: m, a multiple of ``num_blocks``.
        num_blocks: k; at inner width 4 H a layer has 1.25 / k of the dense weights.
        guide: Self-guided training; null for the factors alone.

    Raises:
        ValueError: ``num_blocks`` does not divide n and m.

    Examples:
        >>> BlockShuffleLinear(32, 64, num_blocks=2)(torch.zeros(5, 32)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self, in_features: int, out_features: int, num_blocks: int = 2, guide: SelfGuide | None = None
    ) -> None:
        _require_divisor(num_blocks, in_features)
        _require_divisor(num_blocks, out_features)
        self.num_blocks = num_blocks
        super().__init__(in_features, out_features, guide)

    def make_factors(self) -> None:
        """See `StructuredLinear`."""
        k, n, m = self.num_blocks, self.in_features, self.out_features
        self.first = _orthonormal(k, min(n, m) // k, n // k)
        self.second = _orthonormal(k, m // k, min(n, m) // k)

    def structured(self, x: Tensor) -> Tensor:
        """See `StructuredLinear`."""
        k = self.num_blocks
        shuffled = rearrange(_blocks(x, self.first).flatten(-2), "... (q k) -> ... k q", k=k)
        return rearrange(einsum("...kq,kpq->...kp", shuffled, self.second), "... k p -> ... (p k)")


def spectral_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Computes balanced factors (r, n) and (m, r) of the best rank-r approximation to a matrix (m, n)."""
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = sizes[:rank].sqrt()
    return roots[:, None] * right[:rank], left[:, :rank] * roots


def guided_layers(module: nn.Module) -> list[StructuredLinear]:
    """Returns the self-guided maps in a network or model."""
    return [part for part in module.modules() if isinstance(part, StructuredLinear) and part.guide is not None]


def advance_guides(layers: Sequence[StructuredLinear], may_leave_out: bool = True) -> None:
    """Counts an update in self-guided maps; training calls it after each optimizer step, outside CUDA graphs.

    Args:
        layers: Maps from `guided_layers`.
        may_leave_out: Whether passes may skip a guide whose share is 0. That saves time but changes the graph of the
            backward pass; False under DDP, whose graph must stay the same.
    """
    for layer in layers:
        layer.advance(may_leave_out)


def merge_structured(network: Network) -> Network:
    """Copies a network with every structured map as one dense layer, which is faster at inference for few tokens."""
    merged = copy.deepcopy(network)
    for name, part in list(merged.named_modules()):
        if isinstance(part, StructuredLinear):
            parent, _, own_name = name.rpartition(".")
            setattr(merged.get_submodule(parent), own_name, part.merged())
    return merged


def _blocks(x: Tensor, blocks: Tensor) -> Tensor:
    """Applies a block-diagonal map: (..., n), (k, q, n / k) -> (..., k, q)."""
    return einsum("...ki,kqi->...kq", rearrange(x, "... (k i) -> ... k i", k=blocks.shape[0]), blocks)


def _orthonormal(*shape: int) -> nn.Parameter:
    """Draws normal matrices and returns their polar factors."""
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    return nn.Parameter(left @ right)


def _rank(ratio: float, full: int, multiple_of: int) -> int:
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"rank_ratio: expected above 0 and at most 1, found {ratio}")
    return max(1, round(ratio * full / multiple_of)) * multiple_of


def _require_divisor(num_blocks: int, features: int) -> None:
    if num_blocks < 1 or features % num_blocks:
        raise ValueError(f"num_blocks: expected a divisor of the {features} features, found {num_blocks}")
