"""Scores of returns: those of a random and of an expert policy, and the normalised score between them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tql_lightning.data.checks import DatasetError, as_array

Scores = tuple[float, float]  # returns of a random and of an expert policy


def check_reference_scores(scores: ArrayLike | None, name: str) -> Scores | None:
    """Checks the returns of a random and of an expert policy; None stays None.

    Raises:
        DatasetError: Not two finite numbers, or the expert's is not larger.
    """
    if scores is None:
        return None
    array = as_array("reference_scores", scores, name)
    if array.dtype.kind not in "fiu" or array.shape != (2,) or not np.isfinite(array).all() or array[0] >= array[1]:
        raise DatasetError(
            f"{name}: reference_scores: expected the returns of a random and of an expert policy, random below expert, "
            f"found {array.tolist()}; leave them out if they are not known"
        )
    return float(array[0]), float(array[1])


def normalized_score(returns: ArrayLike, reference_scores: Scores) -> NDArray[np.float64]:
    """Returns in units where a random policy has 0 and an expert 100, as D4RL (arXiv 2004.07219) reports them.

    Args:
        returns: Undiscounted returns, any shape.
        reference_scores: Mean returns of a random and of an expert policy.
    """
    random, expert = reference_scores
    return 100.0 * (np.asarray(returns, dtype=np.float64) - random) / (expert - random)


def scores_in(env_id: str, own_env_id: str | None, scores: Scores | None) -> Scores | None:
    """A dataset's reference scores where they belong to the environment that is played; else None, with a warning.

    Args:
        env_id: Environment that is played.
        own_env_id: Environment that the dataset names; None if it names none, so that the scores are taken as they are.
        scores: Returns of a random and of an expert policy.
    """
    played, own = (each if (each or "{")[0] == "{" else each.rpartition(":")[2] for each in (env_id, own_env_id or ""))
    if scores is None or own_env_id is None or played == own:
        return scores
    warnings.warn(
        f"reference scores are of {own_env_id:.80}, not of {env_id:.80}: there is no normalised score", stacklevel=3
    )
    return None


def mean_scores(dataset: Any, reference_scores: Scores | None) -> dict[str, float] | None:
    """Mean return of a dataset's episodes and, with reference scores, their mean normalised score.

    None where episodes were recorded on after a goal, at which the environment would have ended.
    """
    if ((dataset.masks == 0) & ~dataset.episode_ends).any():
        return None
    mean_return = float(dataset.episode_returns().mean())
    scores = {"return": mean_return}
    if reference_scores is not None:
        scores["normalized_score"] = float(normalized_score(mean_return, reference_scores))
    return scores
