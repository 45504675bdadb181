"""Vector environments, in this process or with one process each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.evaluation.envs import EnvError
from tql_lightning.system.child_processes import sigint_blocked

if TYPE_CHECKING:
    import gymnasium

MakeEnv = Callable[[], "gymnasium.Env[Any, Any]"]

EXIT_SECONDS = 2.0  # wait for the exit code of a process that closed its pipe


class VectorEnvs:
    """Several copies of an environment; every error in them is raised as `EnvError`."""

    def __init__(self, env_id: str, make: MakeEnv, number: int, parallel: bool) -> None:
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

        self.env_id = env_id
        makers = [make] * number
        mode = AutoresetMode.DISABLED
        with sigint_blocked() if parallel else nullcontext():
            self._envs: Any = self._try(
                lambda: (
                    AsyncVectorEnv(makers, context="spawn", autoreset_mode=mode)
                    if parallel
                    else SyncVectorEnv(makers, autoreset_mode=mode)
                )
            )
        self.number = number
        self.action_shape: tuple[int, ...] = self._envs.action_space.shape

    def reset(self, seeds: list[int], which: NDArray[np.bool_]) -> NDArray[Any]:
        """Resets the environments in the mask; returns the observations of all."""
        observations: NDArray[Any]
        observations, _ = self._try(lambda: self._envs.reset(seed=seeds, options={"reset_mask": which}))
        self._require_finite(observations[which])
        return observations

    def step(self, actions: NDArray[np.float32], active: NDArray[np.bool_]) -> tuple[Any, ...]:
        """Steps all environments; results of inactive ones are not checked."""
        outcome: tuple[Any, ...] = self._try(lambda: self._envs.step(actions))
        self._require_finite(outcome[0][active], outcome[1][active])
        return outcome

    def successes(self, info: dict[str, Any], ended: NDArray[np.bool_]) -> NDArray[np.float64] | None:
        """Success of the episodes that have ended, 0 or 1; None where none of them reports it."""
        reported = info.get("_success", np.zeros_like(ended)) & ended
        return np.where(reported, info["success"], 0.0)[ended] if reported.any() else None

    def close(self) -> None:
        """Closes the environments and ends their processes, also those that hang or have died.

        Raises:
            EnvError: an environment in this process cannot be closed.
        """
        processes = getattr(self._envs, "processes", None)
        if processes is None:
            self._try(self._envs.close)
            return
        try:
            self._envs.close(terminate=True)
        except (Exception, SystemExit):  # Gymnasium waits for a process that has died
            for process in processes:
                process.kill()
                process.join()
            self._envs.closed = True

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (EnvError, KeyboardInterrupt):
            raise
        except (EOFError, ConnectionError) as error:
            raise EnvError(
                f"environment {self.env_id} failed: its process ended unexpectedly{self._exit_codes()}"
            ) from error
        except BaseException as error:  # of any simulator: sys.exit, and what those in other languages raise
            raise EnvError(f"environment {self.env_id} failed: {type(error).__name__}: {error}") from error

    def _exit_codes(self) -> str:
        """Exit codes of the processes that have ended, for the message."""
        processes = getattr(getattr(self, "_envs", None), "processes", ())
        for process in processes:
            process.join(EXIT_SECONDS / len(processes))
        codes = sorted({process.exitcode for process in processes if process.exitcode is not None})
        return f" (exit code {', '.join(map(str, codes))})" if codes else ""

    def _require_finite(self, *arrays: NDArray[Any]) -> None:
        with np.errstate(over="ignore"):  # sums of larger numbers would become infinite
            finite = all(np.isfinite(array.astype(np.float32)).all() for array in arrays)
        if not finite:
            raise EnvError(
                f"environment {self.env_id}: expected finite rewards and observations, found NaN, infinity or numbers "
                "beyond float32; the policy's actions may have made the simulation unstable"
            )
