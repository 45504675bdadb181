"""Pictures of a critic: where it attends, and how its Q lies over the actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float32]

MOST_NAMED_TOKENS = 24  # beyond, only the groups of tokens are named
ROW_LABELS = ("dataset action", "policy action")


def attention_map_figure(maps: Sequence[Floats], observation_dim: int, update: int) -> Figure:
    """Mean attention maps side by side, axes by token: [VALUE], observation, action.

    Args:
        maps: one (n, n) per layer, rows being queries and summing to 1.
        observation_dim: n_s.
        update: for the title.
    """
    figure = _figure(4.6 * len(maps), 4.6)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for layer, (axis, weights) in enumerate(zip(axes, maps, strict=True)):
        image = axis.imshow(weights, vmin=0.0, cmap="viridis", interpolation="nearest")
        _label_tokens(axis, len(weights), observation_dim)
        axis.set_title(f"layer {layer}: mean attention weight")
        axis.set_xlabel("key")
        axis.set_ylabel("query")
        figure.colorbar(image, ax=axis, shrink=0.8)
    figure.suptitle(f"update {update:,}")
    return figure


def _label_tokens(axis: Axes, tokens: int, observation_dim: int) -> None:
    action_dim = tokens - 1 - observation_dim
    ends = (0.5, 0.5 + observation_dim)
    for end in ends:
        axis.axhline(end, color="white", linewidth=0.7)
        axis.axvline(end, color="white", linewidth=0.7)
    if tokens <= MOST_NAMED_TOKENS:
        places: list[float] = list(range(tokens))
        names = [f"observation {i}" for i in range(observation_dim)] + [f"action {i}" for i in range(action_dim)]
    else:
        places = [0.0, (1 + observation_dim) / 2, observation_dim + (1 + action_dim) / 2]
        names = [f"observation 0-{observation_dim - 1}", f"action 0-{action_dim - 1}"]
    axis.set_xticks(places, ["[VALUE]", *names], rotation=90, fontsize=7)
    axis.set_yticks(places, ["[VALUE]", *names], fontsize=7)


def q_landscape_figure(
    values: Floats, offsets: Floats, dimensions: Sequence[int], update: int, roughness: float
) -> Figure:
    """Q around an action of the dataset (upper row) and one of the policy (lower row), a column per observation.

    Args:
        values: (2, P, m) for one action dimension, (2, P, m, m) for two; NaN where there is no action.
        offsets: (m,).
        dimensions: that were moved.
        update: for the title.
        roughness: for the title; see `landscape.smoothness`.
    """
    columns = values.shape[1]
    figure = _figure(3.6 * columns, 6.4)
    axes = figure.subplots(2, columns, squeeze=False, sharex=True)
    for column in range(columns):
        low, high = np.nanmin(values[:, column]), np.nanmax(values[:, column])
        for row, label in enumerate(ROW_LABELS):
            axis, shown = axes[row, column], values[row, column]
            axis.set_title(f"observation {column}, {label}", fontsize=9)
            if len(dimensions) == 1:
                axis.plot(offsets, shown)
                axis.axvline(0.0, color="black", linewidth=0.7)
                axis.set_ylabel("Q")
                continue
            mesh = axis.pcolormesh(offsets, offsets, shown, vmin=low, vmax=high, shading="nearest", cmap="viridis")
            axis.plot(0.0, 0.0, "r+")
            axis.set_ylabel(f"offset in action {dimensions[0]}")
            figure.colorbar(mesh, ax=axis, shrink=0.8)
        axes[1, column].set_xlabel(f"offset in action {dimensions[-1]}")
    figure.suptitle(f"Q at update {update:,}; roughness {roughness:.4f}")
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure as NewFigure

    return NewFigure(figsize=(width, height), layout="constrained")
