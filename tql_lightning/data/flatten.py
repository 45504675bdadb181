"""Spaces of recorded data and of environments: observations as columns, actions as one bounded vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import gymnasium

GOAL_KEYS = ("observation", "desired_goal")


def flat_keys(space: gymnasium.spaces.Dict) -> list[str]:
    """Keys of a Dict space in the order of their columns.

    A goal-conditioned space gives ``observation``, then ``desired_goal``; ``achieved_goal`` is left out, as it repeats
    part of the observation. Any other gives all its keys, sorted as text, in whatever order the space holds them:
    recorded data keep the keys alone.
    """
    return list(GOAL_KEYS) if set(GOAL_KEYS) <= set(space.spaces) else sorted(space.spaces, key=str)


def flat_space(space: gymnasium.Space[Any]) -> gymnasium.spaces.Box | None:
    """The float32 Box (n,) of the columns of a Box, or of a Dict of Boxes (nested or not); None for anything else.

    Images (uint8 with more than one dimension) give None, because each pixel would be a token. So does an empty Box.
    """
    from gymnasium.spaces import Box, Dict

    if isinstance(space, Box):
        if 0 in space.shape or (space.dtype == np.uint8 and len(space.shape) > 1):
            return None
        low, high = (bound.astype(np.float32).ravel() for bound in (space.low, space.high))
        return Box(low, high, dtype=np.float32)
    if not isinstance(space, Dict) or not space.spaces:
        return None
    parts = [flat_space(space[key]) for key in flat_keys(space)]
    boxes = [part for part in parts if part is not None]
    if len(boxes) < len(parts):
        return None
    low, high = (np.concatenate([getattr(box, name) for box in boxes]) for name in ("low", "high"))
    return Box(low, high, dtype=np.float32)


def flatten(space: gymnasium.Space[Any], values: Any, leading: tuple[int, ...] = ()) -> NDArray[Any]:
    """Flattens values of a space, with leading dimensions, to columns (..., n).

    Args:
        space: Box, or Dict of Boxes.
        values: Array, or dictionary of arrays.
        leading: Dimensions before those of the space; () for one observation, (T,) for an episode.
    """
    import gymnasium

    if isinstance(space, gymnasium.spaces.Dict):
        return np.concatenate([flatten(space[key], values[key], leading) for key in flat_keys(space)], axis=-1)
    return np.asarray(values).reshape(*leading, -1)


def action_problem(space: gymnasium.Space[Any]) -> str | None:
    """What a policy of continuous actions cannot play in a space, as "expected ..., found ..."; None if it can."""
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or len(space.shape) != 1:
        return f"expected a Box of actions of rank 1, found {space}"
    if not np.issubdtype(space.dtype, np.floating):
        return f"expected continuous actions of a floating-point dtype, found {space.dtype} ({space})"
    with np.errstate(over="ignore"):
        bounds = np.stack([space.low, space.high]).astype(np.float32)
    if not (np.isfinite(bounds).all() and bounds.size and (bounds[0] < bounds[1]).all()):
        return f"expected bounded actions, each with low < high, found {space}"
    return None


def different_bounds(space: gymnasium.spaces.Box, low: ArrayLike, high: ArrayLike) -> tuple[str, ArrayLike, Any] | None:
    """The first bound that is not the space's, up to the rounding of its dtype: its name, the given and the right one.

    Args:
        space: Box of actions for which `action_problem` is None.
        low: Lower bounds, (n_a,).
        high: Upper bounds, (n_a,).
    """
    rtol = max(1e-5, float(np.finfo(space.dtype).eps))  # type: ignore[type-var]
    for name, given, bound in (("action_low", low, space.low), ("action_high", high, space.high)):
        if not np.allclose(given, bound, rtol=rtol, atol=1e-6):
            return name, given, bound
    return None
