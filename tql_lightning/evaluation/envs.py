"""Makes environments with flat float32 observations and actions in [-1, 1]."""

from __future__ import annotations

import difflib
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tql_lightning.data.environment import environment_spec
from tql_lightning.data.flatten import flat_space, flatten
from tql_lightning.trust.text import FileError

if TYPE_CHECKING:
    import gymnasium


class EnvError(FileError):
    """An environment cannot be made, fails or does not fit; the message gives the reason."""


def make_env(env_id: str, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Makes a Gymnasium environment with flat float32 observations and actions in [-1, 1].

    The columns of Dict observations are those of `tql_lightning.data.flatten`.

    Args:
        env_id: Gymnasium id; "package:Env-v0" first imports the package that registers it. Or a JSON specification
            (``EnvSpec.to_json``), as Minari's datasets hold for environments made with arguments.
        render_mode: Render mode of the environment.

    Raises:
        EnvError: unknown id, missing package, constructor without ``render_mode``, unsupported spaces, pictures, or
            actions without bounds.
    """
    import gymnasium
    from gymnasium.wrappers import DtypeObservation, FlattenObservation, RescaleAction, TransformObservation

    from tql_lightning.evaluation.seeded_reset import SeededReset

    try:
        rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        env = gymnasium.make(environment_spec(env_id), **rendering)
    except TypeError as error:
        raise EnvError(f"environment {env_id}: its constructor does not take its arguments ({error})") from error
    except ModuleNotFoundError as error:
        raise EnvError(f"environment {env_id}: {error}; install the package that registers it") from error
    except ValueError as error:  # of a specification
        raise EnvError(f"environment {env_id:.200}: {error}") from error
    except gymnasium.error.Error as error:
        close = difflib.get_close_matches(env_id.split(":")[-1], gymnasium.registry)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise EnvError(f"environment {env_id}: {error}{hint}") from error
    except (Exception, SystemExit) as error:  # of any simulator
        raise EnvError(f"environment {env_id} failed: {type(error).__name__}: {error}") from error
    box = gymnasium.spaces.Box
    if not isinstance(env.action_space, box) or env.action_space.shape is None or len(env.action_space.shape) != 1:
        raise EnvError(f"environment {env_id}: expected a Box of actions of rank 1, found {env.action_space}")
    if not (np.isfinite(env.action_space.low).all() and np.isfinite(env.action_space.high).all()):
        raise EnvError(f"environment {env_id}: expected bounded actions, found {env.action_space}")
    columns = flat_space(env.observation_space)
    if columns is None:
        raise EnvError(
            f"environment {env_id}: expected a Box of observations, or a Dict of Boxes, and no pictures, found "
            f"{env.observation_space}"
        )
    if isinstance(env.observation_space, gymnasium.spaces.Dict):
        env = TransformObservation(env, partial(flatten, env.observation_space), columns)
    if len(env.observation_space.shape) != 1:  # type: ignore[arg-type]
        env = FlattenObservation(env)
    if env.observation_space.dtype != "float32":
        env = DtypeObservation(env, "float32")
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    if (low != -1.0).any() or (high != 1.0).any():
        env = RescaleAction(env, np.float32(-1.0), np.float32(1.0))
    return SeededReset(env)


def check_sizes(env_id: str, observation_dim: int, action_dim: int) -> None:
    """Makes the environment once and compares its sizes with a model's.

    Raises:
        EnvError: the sizes differ, or the environment cannot be made.
    """
    env = make_env(env_id)
    try:
        found = {"observation": env.observation_space.shape, "action": env.action_space.shape}
    finally:
        with suppress(Exception, SystemExit):  # an evaluation will tell of it
            env.close()
    expected = {"observation": (observation_dim,), "action": (action_dim,)}
    if found != expected:
        raise EnvError(f"environment {env_id}: expected sizes {expected} as in the dataset, found {found}")
