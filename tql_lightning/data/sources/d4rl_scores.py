"""D4RL's reference scores: returns of a random and of an expert policy (Fu et al., arXiv 2004.07219; its infos.py)."""

from __future__ import annotations

from itertools import product

# Environment and version -> (random, expert). Kinds of data of one environment share them.
_LOCOMOTION = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
_ADROIT = {
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
}
_MAZE2D = {
    "maze2d-open-v0": (0.01, 20.66),
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-open-dense-v0": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
}
_ANTMAZE = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
_KINDS = {
    "v0": ("random", "medium", "expert", "medium-replay", "medium-expert"),
    "v1": ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"),
    "v2": ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"),
}

REFERENCE_SCORES: dict[str, tuple[float, float]] = {
    **{
        f"{name}-{kind}-{version}": scores
        for name, scores in _LOCOMOTION.items()
        for version, kinds in _KINDS.items()
        for kind in kinds
    },
    **{
        f"{name}-{kind}-{version}": scores
        for name, scores in _ADROIT.items()
        for kind, version in product(("human", "cloned", "expert"), ("v0", "v1"))
    },
    **_MAZE2D,
    **{f"antmaze-{maze}-{version}": (0.0, 1.0) for maze, version in product(_ANTMAZE, ("v0", "v2"))},
    **{f"kitchen-{kind}-v0": (0.0, 4.0) for kind in ("complete", "partial", "mixed")},
}

# Mazes and kitchens whose files have other names than their datasets, without the version.
_FILES = {
    "maze2d-umaze-sparse-v1": "maze2d-umaze-v1",
    "maze2d-medium-sparse-v1": "maze2d-medium-v1",
    "maze2d-large-sparse-v1": "maze2d-large-v1",
    "maze2d-open-sparse": "maze2d-open-v0",
    "maze2d-open-dense": "maze2d-open-dense-v0",
    "mini_kitchen_microwave_kettle_light_slider-v0": "kitchen-complete-v0",
    "kitchen_microwave_kettle_light_slider-v0": "kitchen-partial-v0",
    "kitchen_microwave_kettle_bottomburner_light-v0": "kitchen-mixed-v0",
    "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse": "antmaze-umaze-v0",
    "Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse": "antmaze-umaze-diverse-v0",
    "Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse": "antmaze-medium-play-v0",
    "Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse": "antmaze-medium-diverse-v0",
    "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse": "antmaze-large-play-v0",
    "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse": "antmaze-large-diverse-v0",
}


def dataset_name(stem: str) -> str:
    """Name of D4RL's dataset in a published file ("hopper_medium_replay-v2" -> "hopper-medium-replay-v2").

    Args:
        stem: the file's name without its ending; returned with - for _ where the file is no published one.
    """
    name = stem.removesuffix("_fixed")  # files of the second version of the ant mazes end so
    if name in _FILES:
        return _FILES[name].replace("-v0", "-v2") if name != stem else _FILES[name]
    return stem.replace("_", "-")
