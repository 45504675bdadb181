"""Environments whose calls cannot block training: one that hangs is abandoned."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.evaluation.envs import EnvError, make_env
from tql_lightning.evaluation.vector_envs import VectorEnvs
from tql_lightning.evaluation.watched_rollout import hang_error


class WatchedEnvs:
    """`VectorEnvs` in a thread of its own, which is abandoned where a call does not return in time.

    Args:
        env_id: Gymnasium id of the environment.
        number: Number of environments.
        parallel: Whether each runs in a process of its own.
        timeout: Most seconds that a call may take.
        max_episode_steps: Time limit of an episode; None for the one that the environment is registered with.

    Raises:
        EnvError: An environment cannot be made, or a call failed or took too long; by every method.
    """

    def __init__(
        self, env_id: str, number: int, parallel: bool, timeout: float, max_episode_steps: int | None = None
    ) -> None:
        self._timeout, self._parallel, self._hangs = timeout, parallel, False
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        threading.Thread(target=self._serve, name="environments", daemon=True).start()
        make = partial(make_env, env_id, max_episode_steps=max_episode_steps)
        self._envs: VectorEnvs = self._call(partial(VectorEnvs, env_id, make, number, parallel))

    def reset(self, seeds: list[int], which: NDArray[np.bool_]) -> NDArray[Any]:
        """See `VectorEnvs.reset`."""
        observations: NDArray[Any] = self._call(lambda: self._envs.reset(seeds, which))
        return observations

    def step(self, actions: NDArray[np.float32], active: NDArray[np.bool_]) -> tuple[Any, ...]:
        """See `VectorEnvs.step`; the last result is the success of each, NaN where the environment reports none."""

        def step() -> tuple[Any, ...]:
            observations, rewards, terminations, truncations, info = self._envs.step(actions, active)
            reported = self._envs.successes(info, active)
            successes = np.full(len(rewards), np.nan)
            if reported is not None:
                successes[active] = reported
            return observations, rewards, terminations, truncations, successes

        outcome: tuple[Any, ...] = self._call(step)
        return outcome

    def close(self) -> None:
        """Closes the environments and ends the thread; one that hangs in this process is left alone."""
        with suppress(EnvError):
            if not self._hangs:
                self._call(self._envs.close)
            elif self._parallel:
                self._envs.close()  # kills their processes
        self._calls.put(None)

    def _call(self, call: Callable[[], Any]) -> Any:
        self._calls.put(call)
        try:
            result, error = self._results.get(timeout=self._timeout)
        except Empty:
            self._hangs = True
            raise hang_error(self._timeout) from None
        if error is not None:
            raise error
        return result

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._results.put((call(), None))
            except BaseException as error:  # raised again in the calling thread
                self._results.put((None, error))
