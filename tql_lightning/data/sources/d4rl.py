"""D4RL's HDF5 files (Fu et al., arXiv 2004.07219), read with h5py; the d4rl package is not needed."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_lightning.data.checks import check_flags
from tql_lightning.data.sources.d4rl_scores import REFERENCE_SCORES, dataset_name
from tql_lightning.data.sources.hdf5 import check_links, read_numbers
from tql_lightning.data.sources.schema import with_held_out
from tql_lightning.data.transitions import DatasetError, TransitionDataset

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")


def load_d4rl(
    path: str,
    dataset: str | None = None,
    env_id: str | None = None,
    max_episode_steps: int | None = None,
    action_low: list[float] | float = -1.0,
    action_high: list[float] | float = 1.0,
    validation_fraction: float = 0.0,
) -> TransitionDataset:
    """Loads a D4RL file: observations, actions, rewards, terminals, and if present timeouts and next_observations.

    ``terminals`` end the MDP, ``timeouts`` only cut an episode. Where next_observations is missing, it is the row
    below within an episode, and the last row of a cut episode is left out, as D4RL itself does. The last row of the
    file ends its episode.

    Args:
        path: the .hdf5 file.
        dataset: D4RL's name of it, "halfcheetah-medium-v2", for the reference scores; default: by the file's name.
        env_id: Gymnasium id of the environment to evaluate in, "HalfCheetah-v5"; D4RL's own are no longer made.
        max_episode_steps: the time limit, needed for a file without timeouts (the -v0 files of Gym's environments):
            an episode that neither terminated nor timed out ends after so many steps.
        action_low: lower bounds of the actions.
        action_high: upper bounds of the actions.
        validation_fraction: share of the episodes, the last ones, held out for validation.

    Raises:
        DatasetError: the file is missing, damaged, no D4RL file, or one of its arrays is wrong.
    """
    if dataset is not None and dataset not in REFERENCE_SCORES:
        close = difflib.get_close_matches(dataset, REFERENCE_SCORES) or ["halfcheetah-medium-v2"]
        raise DatasetError(
            f"data.dataset.dataset: expected the name of a D4RL dataset, found {dataset!r}; did you mean "
            f"{' or '.join(close)}? Without it there is no normalised score"
        )
    if max_episode_steps is not None and max_episode_steps < 1:
        raise DatasetError(f"data.dataset.max_episode_steps: expected at least 1, found {max_episode_steps}")

    def load(file: Path) -> TransitionDataset:
        arrays = read_hdf5(file)
        return TransitionDataset.from_arrays(
            arrays["observations"],
            arrays["actions"],
            arrays["rewards"],
            arrays["terminals"],
            _truncations(file, arrays, max_episode_steps),
            arrays.get("next_observations"),
            name=file.stem,
            env_id=env_id,
            action_low=action_low,
            action_high=action_high,
            reference_scores=REFERENCE_SCORES.get(dataset or dataset_name(file.stem)),
        )

    return with_held_out(load, Path(path).expanduser(), validation_fraction)


def require_hdf5(path: Path) -> None:
    """Raises a DatasetError if there is no such file."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; check the path, or fetch it where there is a network")


def read_hdf5(path: Path) -> dict[str, NDArray[Any]]:
    """Reads the arrays of a D4RL file.

    Raises:
        DatasetError: the file is missing, damaged, lacks an array, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise DatasetError("D4RL's files need h5py; pip install 'tql-lightning[d4rl]'") from error
    require_hdf5(path)
    try:
        with h5py.File(path, "r") as file:
            there = [name for name in REQUIRED + OPTIONAL if name in file]
            check_links(path, file, there)
            missing = [name for name in REQUIRED if not isinstance(file.get(name), h5py.Dataset)]
            if missing:
                found = ", ".join(list(file)[:20]) or "nothing"
                raise DatasetError(
                    f"{path}: expected a D4RL file with arrays {', '.join(REQUIRED)}, found no {', '.join(missing)} "
                    f"among {found}; check where the file is from"
                )
            return read_numbers(path, file, there)
    except DatasetError:
        raise
    except MemoryError as error:
        raise DatasetError(f"{path}: expected arrays that fit into memory ({error}); convert a part of it") from error
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(
            f"{path}: expected a whole HDF5 file, found a damaged or foreign one ({error}); remove and fetch it again"
        ) from error


def _truncations(path: Path, arrays: dict[str, NDArray[Any]], max_episode_steps: int | None) -> NDArray[Any]:
    """Flags of truncated episodes: the file's timeouts, the time limit, and always the last row."""
    terminals = check_flags("terminals", arrays["terminals"], path.stem)
    if "timeouts" not in arrays and max_episode_steps is None:
        raise DatasetError(
            f"{path}: expected an array timeouts, found none; give the environment's time limit as max_episode_steps "
            "(1000 for Gym's locomotion)"
        )
    truncations = np.array(check_flags("timeouts", arrays.get("timeouts", np.zeros(len(terminals))), path.stem), bool)
    if max_episode_steps is not None and len(truncations) == len(terminals):  # other lengths are refused later
        start = 0
        for end in [*np.flatnonzero((terminals == 1) | truncations), len(terminals) - 1]:
            truncations[start + max_episode_steps - 1 : end : max_episode_steps] = True
            start = end + 1
    if not terminals[-1]:
        truncations[-1] = True
    return truncations
