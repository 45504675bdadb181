"""The environment that a dataset names: whether a file may create it, and whether the dataset fits it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tql_lightning.data.checks import DatasetError, warn_of_time_limits
from tql_lightning.data.flatten import action_problem, different_bounds, flat_space
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.trust.imports import TRUST, defines, import_if_allowed, may_import, registers_environments
from tql_lightning.trust.text import shown

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec


IMPORTABLE = ("gymnasium", "gymnasium_robotics", "ogbench", "tql_lightning")
WRAPPERS = tuple(  # Gymnasium's wrappers that change observations, actions or rewards and write no files
    f"gymnasium.wrappers.{name}"
    for name in ("common", "stateful_action", "stateful_observation", "stateful_reward", "atari_preprocessing")
) + tuple(f"gymnasium.wrappers.transform_{name}" for name in ("action", "observation", "reward"))


def environment_spec(env_id: str) -> str | EnvSpec:
    """The argument for `gymnasium.make`: an id, or the specification in a JSON text.

    A specification opens no window, and gets the entry point that is registered for its id. If there is none, it may
    name an environment class in a module that `import_if_allowed` imports.

    Raises:
        ValueError: The JSON is no specification, or names a class that a file may not name.
    """
    if not env_id.startswith("{"):
        return env_id
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    try:
        spec = EnvSpec.from_json(env_id)
        registered = gymnasium.registry.get(spec.id)
        wrappers = [wrapper.entry_point for wrapper in spec.additional_wrappers]
        spec = replace(spec, kwargs={name: value for name, value in spec.kwargs.items() if name != "render_mode"})
    except Exception as error:  # Gymnasium raises many kinds of errors for other JSON
        raise ValueError(
            f"env_id: expected the JSON of an environment's specification, found {env_id:.80} "
            f"({type(error).__name__}); name the environment by its id"
        ) from error
    for wrapper in wrappers:
        _check_class(wrapper, gymnasium.Wrapper, WRAPPERS)
    if registered is None:
        _check_class(spec.entry_point, gymnasium.Env, IMPORTABLE)
        return replace(spec, vector_entry_point=None)
    return replace(spec, entry_point=registered.entry_point, vector_entry_point=registered.vector_entry_point)


def _check_class(entry_point: object, of: type, importable: Sequence[str]) -> None:
    """Rejects entry points that are not "module:Class" of the right type in a module that may be imported."""
    from gymnasium import Wrapper

    module, _, name = entry_point.partition(":") if isinstance(entry_point, str) else ("", "", "")
    found: Any = None
    # Wrappers must be listed even if already imported, because some of them write files.
    if all(part.isidentifier() for part in (*module.split("."), name)) and (
        of is not Wrapper or may_import(module, importable, defines(name))
    ):
        found = import_if_allowed(f"{module}.{name}", importable)
    if not isinstance(found, type) or not issubclass(found, of) or (of is not Wrapper and issubclass(found, Wrapper)):
        raise ValueError(
            f"env_id: expected module:Class of a gymnasium.{of.__name__} that a file may have made, found "
            f"{shown(entry_point)}; name the environment by its id, or if you trust the file, set "
            f"{TRUST}={module.partition('.')[0] or 'PACKAGE'}"
        )


def check_env_id(env_id: str | None) -> None:
    """Rejects an environment id from a file if making it would import a module that a file may not import.

    A module before the colon of "module:Env-v0" is imported only if it is one of `IMPORTABLE`, named by
    ``TQL_TRUST``, imported already, or a file in the working folder that registers environments.

    Raises:
        ValueError: The id is rejected; the message gives the reason.
    """
    if env_id is None:
        return
    spec = environment_spec(env_id)
    module, colon, _ = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if colon and module not in sys.modules and not may_import(module, IMPORTABLE, registers_environments):
        raise ValueError(
            f"env_id: {env_id:.80} would import {module}, which a file may not have imported; if you trust the file, "
            f"set {TRUST}={module.partition('.')[0]}"
        )


def check_environment(dataset: TransitionDataset) -> str | None:
    """Creates the environment that a dataset names, and compares sizes and bounds of actions.

    Returns:
        Reason why the environment cannot be created on this machine; None if it was compared.

    Raises:
        DatasetError: Sizes or bounds differ, or the environment's actions are not continuous.
    """
    import gymnasium

    if dataset.env_id is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an evaluation shows them
        try:
            env = gymnasium.make(environment_spec(dataset.env_id))
            spaces = env.observation_space, env.action_space
        except (Exception, SystemExit) as error:  # whatever an environment, its package or its simulator raises
            return f"{type(error).__name__}: {error}"
    try:
        check_spaces(dataset, *spaces)
        warn_of_time_limits(
            dataset.name, dataset.episode_ends, dataset.masks == 0, getattr(env.spec, "max_episode_steps", None)
        )
    finally:
        with suppress(Exception, SystemExit):  # an evaluation shows it
            env.close()
    return None


def check_spaces(dataset: TransitionDataset, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> None:
    """Compares a dataset with the spaces of its environment.

    Raises:
        DatasetError: sizes differ, or the bounds of actions.
    """
    from gymnasium.spaces import Box

    columns = flat_space(observations)
    if columns is None:
        raise DatasetError(
            f"{dataset.name}: observations: expected a Box or a Dict of Boxes, and no pictures, in {dataset.env_id}, "
            f"found {observations}; name the environment that the data are from as env_id"
        )
    if columns.shape != (dataset.observation_dim,):
        raise DatasetError(
            f"{dataset.name}: observations: expected {columns.shape[0]} columns as in {dataset.env_id}, found "
            f"{dataset.observation_dim}; name the environment that the data are from as env_id"
        )
    problem = action_problem(actions)
    found = "in the environment" if problem else f"as in {dataset.env_id}, found {dataset.action_dim} columns"
    if problem or actions.shape != (dataset.action_dim,):
        raise DatasetError(
            f"{dataset.name}: actions: {problem or f'expected {actions}'} {found}; name the environment that the data "
            "are from as env_id"
        )
    assert isinstance(actions, Box)
    different = different_bounds(actions, dataset.action_low, dataset.action_high)
    if different is not None:
        name, given, bound = different
        raise DatasetError(
            f"{dataset.name}: {name}: expected {np.asarray(bound).tolist()} as in {dataset.env_id}, found "
            f"{np.asarray(given).tolist()}; the policy's output would be scaled wrongly: give the environment's bounds "
            f"as {name}"
        )
