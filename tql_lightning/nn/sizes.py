"""Checks of sizes that several networks take."""

from __future__ import annotations

import math


def require_sizes(part: str, least: int = 1, most: float = math.inf, **sizes: int) -> None:
    """Checks sizes by name.

    Raises:
        ValueError: One lies outside ``least`` to ``most``; the message names it with its part of the model.
    """
    for name, size in sizes.items():
        if not least <= size <= most:
            wanted = f"at least {least}" if size < least else f"at most {most:,}"
            raise ValueError(f"{part}.{name}: expected {wanted}, found {size}")


def require_heads(hidden_dim: int, head_dim: int) -> None:
    """Checks that heads of a critic's attention share its tokens evenly.

    Raises:
        ValueError: ``hidden_dim`` is not a multiple of ``head_dim``; the message names the nearest one.
    """
    if hidden_dim % head_dim:
        raise ValueError(
            f"critic.hidden_dim: expected a multiple of head_dim={head_dim}, found {hidden_dim}; "
            f"try {max(1, round(hidden_dim / head_dim)) * head_dim}"
        )
