"""Settings of an online phase, and the counts of steps and updates that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tql_lightning.data.experience import MODES, Mode


@dataclass(frozen=True)
class Online:
    """Environment steps after the offline updates, each followed by updates; see docs/online.md.

    A round is one step of every environment; updates follow it. The defaults are the protocol of FQL's release.

    Args:
        steps: Environment steps of the online phase, over all environments; 0 for no such phase.
        updates_per_env_step: Updates for each environment step (update-to-data ratio). Times ``num_envs`` it is a whole
            number; 0.333333 with three environments is one update.
        mode: "retain" draws minibatches uniformly from the dataset and all collected transitions together, "balanced"
            half from each (RLPD), "empty" from the collected ones alone.
        num_envs: Environments that step at once, over all processes together.
        parallel: Whether each environment runs in a process of its own, for slow environments.
        start_steps: Environment steps before the first online update (5,000 in Q-chunking's release).
        random_steps: First environment steps whose actions are uniform instead of the policy's.
        env_id: Gymnasium id; null for the environment that the dataset names.
        max_episode_steps: Time limit of an episode; null for the one that the environment is registered with.
        max_broken_episodes: Failures of environments after which the run stops; each drops the episodes that were in
            flight there.
        timeout: Seconds after which a step of the environments, or making them, counts as hung.

    Raises:
        ValueError: A number is out of its range, or does not fit the others.
    """

    steps: int = 0
    updates_per_env_step: float = 1.0
    mode: Mode = "retain"
    num_envs: int = 1
    parallel: bool = False
    start_steps: int = 0
    random_steps: int = 0
    env_id: str | None = None
    max_episode_steps: int | None = None
    max_broken_episodes: int = 10
    timeout: float = 300.0

    def __post_init__(self) -> None:
        least = {"steps": 0, "num_envs": 1, "start_steps": 0, "random_steps": 0, "max_broken_episodes": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"online.{name}: expected at least {bound}, found {getattr(self, name)}")
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise ValueError(f"online.max_episode_steps: expected at least 1, found {self.max_episode_steps}")
        if self.mode not in MODES:
            raise ValueError(f"online.mode: expected {', '.join(MODES)}, found {self.mode}")
        if not self.timeout > 0.0:
            raise ValueError(f"online.timeout: expected above 0, found {self.timeout}")
        for name in ("steps", "start_steps"):
            if getattr(self, name) % self.num_envs:
                raise ValueError(
                    f"online.{name}: expected a multiple of online.num_envs={self.num_envs}, found "
                    f"{getattr(self, name)}"
                )
        if self.steps and self.start_steps >= self.steps:
            raise ValueError(f"online.start_steps: expected below online.steps={self.steps}, found {self.start_steps}")
        updates = self.updates_per_env_step * self.num_envs
        if not (0.5 < updates < math.inf and math.isclose(updates, round(updates), rel_tol=1e-5)):
            raise ValueError(
                "online.updates_per_env_step: expected a whole number of updates after a step of all "
                f"{self.num_envs} environments (online.num_envs), found {updates:g}"
            )

    @property
    def updates_per_round(self) -> int:
        """Updates after a step of every environment."""
        return round(self.updates_per_env_step * self.num_envs)

    @property
    def updates(self) -> int:
        """Updates of the online phase."""
        return (self.steps - self.start_steps) // self.num_envs * self.updates_per_round

    def rounds_before(self, update: int) -> int:
        """Rounds that come before an online update, counted from 0."""
        return self.start_steps // self.num_envs + update // self.updates_per_round + 1

    @property
    def fixed(self) -> dict[str, Any]:
        """Settings that a continued run must not change, since what is collected depends on them."""
        names = (
            "updates_per_env_step",
            "mode",
            "num_envs",
            "start_steps",
            "random_steps",
            "env_id",
            "max_episode_steps",
        )
        return {name: getattr(self, name) for name in names}
