"""Properties of the data that an algorithm needs besides its dimensions."""

from __future__ import annotations

from dataclasses import dataclass

from tql_lightning.training.hyperparameters import require


@dataclass  # not frozen: Lightning copies settings field by field
class Problem:
    """Length of a decision and ranges of rewards; the command line takes all of it from the data.

    Args:
        action_chunk: h, environment steps per decision.
        reward_range: Smallest and largest reward of transitions that continue; null if none does.
        final_reward_range: The same for transitions that terminate; null if none does.

    Examples:
        >>> Problem(reward_range=(-1.0, 0.0)).return_range(discount=0.5)
        (-2.0, 0.0)
    """

    action_chunk: int = 1
    reward_range: tuple[float, float] | None = None
    final_reward_range: tuple[float, float] | None = None

    def return_range(self, discount: float) -> tuple[float, float] | None:
        """Computes the smallest and largest discounted return of episodes of any length with these rewards.

        An episode of n rewards r that continue and a last reward f returns r (1 + ... + gamma^(n-1)) + gamma^n f. That
        lies between f, for n = 0, and r / (1 - gamma), as n grows.

        Args:
            discount: gamma.

        Returns:
            Smallest and largest return; None if rewards are unknown, or if they are undiscounted and the sum has no
            bound.
        """
        continuing, final = self.reward_range, self.final_reward_range
        if discount == 1.0 and continuing is not None:
            return None
        ranges = [] if continuing is None else [(continuing[0] / (1.0 - discount), continuing[1] / (1.0 - discount))]
        ranges += [] if final is None else [final]
        return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None

    def known_returns(self, discount: float) -> tuple[float, float]:
        """Computes `return_range` and checks it.

        Raises:
            ValueError: The range is unknown or empty.
        """
        low, high = self.return_range(discount) or (0.0, 0.0)
        expected = "rewards that differ, which make a range of returns (the command line takes them from the dataset)"
        require("problem.reward_range", low < high, expected, (self.reward_range, self.final_reward_range))
        return low, high
