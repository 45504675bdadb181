"""Makes environments with flat float32 observations and actions in [-1, 1], whose reports are checked."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from tql_lightning.data.environment import environment_spec
from tql_lightning.data.flatten import different_bounds
from tql_lightning.evaluation.env_error import EnvError as EnvError
from tql_lightning.system.whole_numbers import whole

if TYPE_CHECKING:
    import gymnasium

    from tql_lightning.evaluation.policy_env import PolicyEnv

Bounds = tuple[Sequence[float], Sequence[float]]


def make_env(env_id: str, render_mode: str | None = None, max_episode_steps: int | None = None) -> PolicyEnv:
    """Makes a Gymnasium environment as a policy plays it; see `PolicyEnv`.

    Args:
        env_id: Gymnasium id; "package:Env-v0" first imports the package that registers it. Or a JSON specification
            (``EnvSpec.to_json``), as Minari's datasets hold for environments made with arguments.
        render_mode: Render mode of the environment.
        max_episode_steps: Time limit of an episode; None for the one that the environment is registered with.

    Raises:
        EnvError: unknown id, missing package, constructor without ``render_mode``, unsupported spaces, pictures,
            actions that are discrete or without bounds, or no time limit.
    """
    import gymnasium

    from tql_lightning.evaluation.policy_env import PolicyEnv
    from tql_lightning.evaluation.seeded_reset import SeededReset

    if max_episode_steps is not None:
        try:
            max_episode_steps = whole("max_episode_steps", max_episode_steps, at_least=1)
        except ValueError as error:
            raise EnvError(str(error)) from None
    try:
        rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        env = gymnasium.make(environment_spec(env_id), max_episode_steps=max_episode_steps, **rendering)
        played = PolicyEnv(SeededReset(env), env_id)
    except (EnvError, KeyboardInterrupt):
        raise
    except TypeError as error:
        raise EnvError(f"environment {env_id}: its constructor does not take its arguments ({error})") from error
    except ModuleNotFoundError as error:
        raise EnvError(f"environment {env_id}: {error}; install the package that registers it") from error
    except ValueError as error:  # of a specification
        raise EnvError(f"environment {env_id:.200}: {error}") from error
    except gymnasium.error.Error as error:
        name = env_id.split(":")[-1]
        close = [] if name in gymnasium.registry else difflib.get_close_matches(name, gymnasium.registry)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise EnvError(f"environment {env_id}: {error}{hint}") from error
    except BaseException as error:  # of any simulator: sys.exit, and what those in other languages raise
        raise EnvError(f"environment {env_id} failed: {type(error).__name__}: {error}") from error
    if not _has_time_limit(env):
        raise EnvError(
            f"environment {env_id}: expected a time limit, found none: an episode might never end; register it with "
            "max_episode_steps, or set max_episode_steps where it is played"
        )
    return played


def _has_time_limit(env: gymnasium.Env[Any, Any]) -> bool:
    import gymnasium

    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return True
        env = env.env
    return False


def check_env(
    env_id: str, observation_dim: int, action_dim: int, bounds: Bounds | None, max_episode_steps: int | None = None
) -> None:
    """Makes the environment once and compares sizes and bounds of actions with those of a model's data.

    Args:
        env_id: Gymnasium id.
        observation_dim: n_s.
        action_dim: n_a of one action of the environment.
        bounds: Lower and upper bounds of the data's actions, (n_a,) each; None where they are not known.
        max_episode_steps: See `make_env`.

    Raises:
        EnvError: Sizes or bounds differ, or the environment cannot be made.
    """
    env = make_env(env_id, max_episode_steps=max_episode_steps)
    with suppress(Exception, SystemExit):  # an evaluation will tell of it
        env.close()
    found = {"observation": env.observation_space.shape, "action": env.action_space.shape}
    expected = {"observation": (observation_dim,), "action": (action_dim,)}
    if found != expected:
        raise EnvError(f"environment {env_id}: expected sizes {expected} as in the dataset, found {found}")
    different = None if bounds is None else different_bounds(env.raw_actions, *bounds)
    if different is not None:
        name, given, bound = different
        raise EnvError(
            f"environment {env_id}: {name}: expected {np.asarray(given).tolist()} as in the dataset, found "
            f"{bound.tolist()}; actions would reach it at another scale: evaluate in the environment that the data are "
            f"from, or train on data with its bounds"
        )


@cache
def reports_success(env_id: str, max_episode_steps: int | None = None) -> bool | None:
    """Whether an environment's infos hold ``success`` in its first episode; None where the environment fails.

    Args:
        env_id: Gymnasium id.
        max_episode_steps: See `make_env`.
    """
    with suppress(Exception, SystemExit), closing(make_env(env_id, max_episode_steps=max_episode_steps)) as env:
        env.reset(seed=0)
        actions = env.raw_actions
        action = np.zeros(actions.shape, actions.dtype).clip(actions.low, actions.high)
        over, info = False, dict[str, Any]()
        while not over and "success" not in info:
            _, _, terminated, truncated, info = env.env.step(action)
            over = bool(terminated or truncated)
        return "success" in info
    return None


def known_bounds(low: ArrayLike | None, high: ArrayLike | None) -> Bounds | None:
    """Bounds of actions as lists; None unless both are known."""
    return None if low is None or high is None else (np.asarray(low).tolist(), np.asarray(high).tolist())
