"""An environment as a policy plays it, whose reports are checked."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.flatten import action_problem, flat_space, flatten
from tql_lightning.evaluation.env_error import EnvError
from tql_lightning.trust.text import shown


class PolicyEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment as a policy plays it.

    Observations are flat float32 columns, those of `tql_lightning.data.flatten`; actions lie in [-1, 1] and reach the
    environment within its bounds and in its dtype. Infos are dropped but for the last step's ``success``, 0 or 1, as
    vector environments cannot stack every value.

    Args:
        env: Environment.
        env_id: Its id, for messages.

    Raises:
        EnvError: Its spaces are none that a policy of continuous actions can play; in a step: what it returns is no
            number where one is expected, or ``success`` is neither true nor false.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], env_id: str) -> None:
        super().__init__(env)
        self._env_id, self._raw_observations = env_id, env.observation_space
        problem = action_problem(actions := env.action_space)
        if problem is not None:
            raise EnvError(f"environment {env_id}: {problem}")
        columns = flat_space(self._raw_observations)
        if columns is None:
            raise EnvError(
                f"environment {env_id}: expected a Box of observations, or a Dict of Boxes, and no pictures, found "
                f"{self._raw_observations}"
            )
        assert isinstance(actions, gymnasium.spaces.Box)
        self.raw_actions = actions
        self._low, self._high = actions.low.astype(np.float64), actions.high.astype(np.float64)
        self._scaled = bool((self._low != -1.0).any() or (self._high != 1.0).any())
        self.observation_space = columns
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, actions.shape, np.float32)

    def reset(self, **arguments: Any) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Resets; returns the columns of the observation and no infos."""
        observation, _ = self.env.reset(**arguments)
        return self._columns(observation), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Steps with an action in [-1, 1]."""
        if self._scaled:  # in float64, where the range of float16 bounds does not overflow
            action = self._low + (np.asarray(action, np.float64) + 1.0) * (self._high - self._low) / 2.0
            action = action.clip(self._low, self._high)
        observation, *numbers, info = self.env.step(np.asarray(action).astype(self.raw_actions.dtype))
        reward, terminated, truncated = map(self._number, ("reward", "terminated", "truncated"), numbers)
        over = {"terminated": terminated, "truncated": truncated}
        last = (terminated or truncated) and "success" in info
        reported = {"success": self._number("success", info["success"])} if last else {}
        for name, value in (over | reported).items():
            if value not in (0.0, 1.0):
                raise EnvError(f"environment {self._env_id}: expected {name} as true or false, found {value:g}")
        return self._columns(observation), reward, bool(terminated), bool(truncated), reported

    def _columns(self, observation: Any) -> NDArray[np.float32]:
        found = flatten(self._raw_observations, observation)
        if found.dtype.kind not in "biuf" or found.shape != self.observation_space.shape:
            raise EnvError(
                f"environment {self._env_id}: expected observations of {self._raw_observations}, found an array of "
                f"{found.dtype}, shape {np.shape(observation) or found.shape}"
            )
        with np.errstate(over="ignore"):
            return found.astype(np.float32)

    def _number(self, name: str, value: Any) -> float:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or array.size != 1:
            raise EnvError(f"environment {self._env_id}: expected a number as {name}, found {shown(value)}")
        return float(array.item())
