"""Pictures of a critic: attention maps and Q landscapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float32]

WEIGHT_TICKS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
TICKS = 10  # points
MAX_NAMED_TOKENS = 24  # with more, only the groups of tokens are named
ROW_LABELS = ("dataset action", "policy action")


def attention_map_figure(maps: Sequence[Floats], observation_dim: int, update: int) -> Figure:
    """Draws the mean attention map of each layer, with axes by token: [VALUE], observation, action.

    A weight has the same colour in every picture, so that layers, updates and runs can be compared. The scale is of
    square roots, since weights of many tokens are small until attention collapses.

    Args:
        maps: Attention weights (n, n) per layer; rows are queries and sum to 1.
        observation_dim: n_s.
        update: Update for the title.
    """
    from matplotlib.colors import PowerNorm

    figure = _figure(3.4 * len(maps) + 0.6, 4.5)
    axes = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    tokens = len(maps[0])
    for layer, (axis, weights) in enumerate(zip(axes, maps, strict=True)):
        image = axis.imshow(weights, norm=PowerNorm(0.5, 0.0, 1.0), cmap="viridis", interpolation="nearest")
        _label_tokens(axis, tokens, observation_dim)
        axis.set_title(f"layer {layer}")
        axis.set_xlabel("key")
    axes[0].set_ylabel("query")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=WEIGHT_TICKS, format="%g")
    bar.ax.axhline(1.0 / tokens, color="white", linewidth=2.0)
    bar.set_label(f"weight (line: 1/{tokens}, uniform attention)")
    figure.suptitle(f"Mean attention weight at update {update:,}")
    return figure


def _label_tokens(axis: Axes, tokens: int, observation_dim: int) -> None:
    action_dim = tokens - 1 - observation_dim
    ends = (0.5, 0.5 + observation_dim)
    for end in ends:
        axis.axhline(end, color="white", linewidth=0.7)
        axis.axvline(end, color="white", linewidth=0.7)
    if tokens <= MAX_NAMED_TOKENS:
        places: list[float] = list(range(tokens))
        names = [f"observation {i}" for i in range(observation_dim)] + [f"action {i}" for i in range(action_dim)]
    else:
        places = [0.0, (1 + observation_dim) / 2, observation_dim + (1 + action_dim) / 2]
        names = [f"observation 0-{observation_dim - 1}", f"action 0-{action_dim - 1}"]
    axis.set_xticks(places, ["[VALUE]", *names], rotation=90, fontsize=TICKS)
    axis.set_yticks(places, ["[VALUE]", *names], fontsize=TICKS)


def q_landscape_figure(
    values: Floats, offsets: Floats, dimensions: Sequence[int], update: int, roughness: float
) -> Figure:
    """Draws Q around an action of the dataset (upper row) and of the policy (lower row), with one column per state.

    Each column has its own scale.

    Args:
        values: Q (2, P, m) for one action dimension, (2, P, m, m) for two; NaN outside the bounds of actions.
        offsets: Offsets (m,) along each dimension.
        dimensions: Action dimensions of the grid.
        update: Update for the title.
        roughness: Roughness for the title; see `landscape.smoothness`.
    """
    columns = values.shape[1]
    figure = _figure(2.7 * columns, 5.2)
    axes = figure.subplots(2, columns, squeeze=False, sharex=True)
    for column in range(columns):
        low, high = float(np.nanmin(values[:, column])), float(np.nanmax(values[:, column]))
        for row, label in enumerate(ROW_LABELS):
            axis, shown = axes[row, column], values[row, column]
            axis.set_title(f"state {column + 1}, {label}", fontsize=TICKS)
            axis.set_facecolor(_outside())
            if len(dimensions) == 1:
                _draw_curve(axis, shown, offsets, 0.05 * (high - low) or 1.0, low, high)
                continue
            mesh = axis.pcolormesh(offsets, offsets, shown, vmin=low, vmax=high, shading="nearest", cmap="viridis")
            axis.plot(0.0, 0.0, "o", markerfacecolor="white", markeredgecolor="black")
            axis.set_ylabel(f"offset in action {dimensions[0]}")
            figure.colorbar(mesh, ax=axis, shrink=0.8, label="Q")
        axes[1, column].set_xticks([float(offsets[0]), 0.0, float(offsets[-1])])
        axes[1, column].set_xlabel(f"offset in action {dimensions[-1]}")
    legend = "dot: the action; grey: outside the bounds"
    figure.suptitle(f"Q at update {update:,}; roughness {roughness:.4f}\n{legend}")
    return figure


def _draw_curve(axis: Axes, values: Floats, offsets: Floats, margin: float, low: float, high: float) -> None:
    from matplotlib import rcParams

    inside = offsets[np.isfinite(values)]
    axis.axvspan(float(inside[0]), float(inside[-1]), color=_inside(), zorder=0)
    axis.plot(offsets, values)
    axis.plot(0.0, float(np.interp(0.0, inside, values[np.isfinite(values)])), "o", color=rcParams["text.color"])
    axis.set_xlim(float(offsets[0]), float(offsets[-1]))
    axis.set_ylim(low - margin, high + margin)
    axis.set_ylabel("Q")
    axis.ticklabel_format(axis="y", useOffset=False)


def _inside() -> str:
    """Background of what lies within the bounds."""
    from matplotlib import rcParams

    return str(rcParams["axes.facecolor"])


def _outside() -> str:
    """Background of what lies outside the bounds: grey, on light and on dark paper."""
    from matplotlib.colors import to_rgb

    return str(0.88 if sum(to_rgb(_inside())) > 1.5 else 0.3)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure as NewFigure

    return NewFigure(figsize=(width, height), layout="constrained")
