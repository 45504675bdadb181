"""Monte-Carlo returns of stored trajectories, from every transition on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class MonteCarloReturns(NamedTuple):
    """What is known of the discounted return from every transition on.

    The return of the behaviour is ``returns + remainders * V`` with V the value of the state at which the trajectory
    was cut. V is not known, but any lower bound of it makes that a lower bound of the return.

    Attributes:
        returns: r_t + gamma r_{t+1} + ..., up to the termination or the cut, float32 (N,).
        remainders: Discount that is left at a cut, gamma^k after k rewards; 0 where the MDP terminated. float32 (N,).
    """

    returns: NDArray[np.float32]
    remainders: NDArray[np.float32]


def monte_carlo_returns(
    rewards: NDArray[Any], masks: NDArray[Any], episode_ends: NDArray[Any], discount: float
) -> MonteCarloReturns:
    """Sums rewards from every transition to the end of its trajectory or to the first transition without a future.

    Args:
        rewards: r, (N,), whole trajectories one after the other.
        masks: 0 where no value follows, else 1, (N,).
        episode_ends: Whether a transition is the last of its trajectory, (N,).
        discount: gamma.
    """
    last = np.flatnonzero((masks == 0) | (episode_ends != 0))
    lengths = np.diff(last, prepend=-1)
    distances = np.repeat(last, lengths) - np.arange(len(rewards))
    cut = np.repeat(masks[last] != 0, lengths)
    longest_first = np.argsort(-lengths, kind="stable")
    last, lengths = last[longest_first], lengths[longest_first]
    returns = np.zeros(len(rewards))
    total = np.zeros(len(last))
    for steps in range(int(lengths[0]) if len(lengths) else 0):
        rows = last[: np.searchsorted(-lengths, -steps, side="left")] - steps
        total = rewards[rows] + discount * total[: len(rows)]
        returns[rows] = total
    remainders = np.where(cut, discount ** (distances + 1.0), 0.0)
    return MonteCarloReturns(returns.astype(np.float32), remainders.astype(np.float32))
