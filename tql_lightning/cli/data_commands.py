"""Commands that make, check and convert datasets; see `cli.commands`."""

from __future__ import annotations

from pathlib import Path


def collect_command(
    environment: str,
    transitions: int = 50_000,
    seed: int = 0,
    workers: int = 2,
    output: str | None = None,
    behaviour: str | None = None,
    overwrite: bool = False,
) -> None:
    """Collects an offline dataset in a real environment with scripted behaviour; continues an interrupted collection.

    Args:
        environment: "cube-single", "cube-double", "cube-triple", "scene", "puzzle-3x3" or "puzzle-4x4" for an
            OGBench play dataset, "pointmaze-medium", "-large", "-giant" or "-teleport" for a navigate dataset, in the
            official format (with a validation file of a tenth beside it); or the id of any Gymnasium environment
            with Box actions, and observations in a Box or a Dict of them ("Pendulum-v1", "Reacher-v5").
        transitions: Smallest number of transitions; episodes are never cut.
        seed: Seed of environments and behaviour.
        workers: Number of processes; the data do not depend on it.
        output: File to write (.npz). Default: where OGBench keeps its datasets, or for others
            $TQL_DATASETS/ENVIRONMENT.npz (datasets/ if that variable is not set).
        behaviour: Import path of a function (action_space, rng) that returns a function from observation to
            action. Default: weak swing-up for Pendulum-v1, clumsy climbing for MountainCarContinuous-v0, random
            actions elsewhere.
        overwrite: Replace an existing file, and episodes that an interrupted collection kept with other settings.
    """
    from tql_lightning.data.collecting.collect import collect

    collected = collect(environment, transitions, seed, workers, output, behaviour, overwrite)
    print(f"wrote {collected.path}: {collected.transitions:,} transitions in {collected.episodes} episodes")
    if collected.mean_return is not None and collected.best_return is not None:
        print(f"mean episode return {collected.mean_return:.1f}, best {collected.best_return:.1f}")


def inspect_command(
    name: str, plot: str | None = None, keys: dict[str, str] | None = None, max_episode_steps: int | None = None
) -> None:
    """Checks a dataset as training would, and prints figures about it.

    Args:
        name: "minari:ID"; an OGBench name such as "cube-double-play-singletask-task2-v0"; or the path of an .npz file,
            a D4RL .hdf5 file, or a folder of .npy files.
        plot: File for a plot of returns, episode lengths and rewards (.png, .pdf, .svg).
        keys: Our name -> the file's name, of arrays under other names: '{observations: obs, actions: acts}'.
        max_episode_steps: Time limit that splits an array dones into terminations and truncations; 0 if all are
            terminations.
    """
    from tql_lightning.data.environment import check_environment
    from tql_lightning.data.named import load_dataset
    from tql_lightning.data.summary import summarise
    from tql_lightning.system.files import require_writable

    if plot:
        require_writable(Path(plot))
    dataset = load_dataset(name, keys=keys, max_episode_steps=max_episode_steps)
    summary = summarise(dataset)
    print("\n".join(summary.lines()))
    if plot:
        from tql_lightning.report.plots import plot_dataset

        figures = {"return": summary.returns, "episode length": summary.lengths, "reward": dataset.rewards}
        print(f"wrote {plot_dataset(dataset.name, figures, Path(plot))}")
    problem = check_environment(dataset)  # last, because the figures help to see what is wrong
    if problem:
        print(f"not compared with {dataset.env_id}, which cannot be made here ({problem})")


def convert_command(
    name: str,
    output: str,
    overwrite: bool = False,
    keys: dict[str, str] | None = None,
    max_episode_steps: int | None = None,
) -> None:
    """Converts any dataset to our own formats, from which the same transitions load.

    Args:
        name: "minari:ID"; an OGBench name such as "cube-double-play-singletask-task2-v0"; or the path of an .npz file,
            a D4RL .hdf5 file, or a folder of .npy files (of any numeric dtypes, with or without next observations).
        output: Path ending in .npz, or of a folder to create, whose files are memory-mapped when loaded. Held-out
            transitions go to OUTPUT-val beside it. Both appear only once they are complete.
        overwrite: Replace an existing file.
        keys: Our name -> the file's name, of arrays under other names: '{observations: obs, actions: acts}'.
        max_episode_steps: Time limit that splits an array dones into terminations and truncations; 0 if all are
            terminations.
    """
    from tql_lightning.data.named import convert

    for path, part in convert(name, output, overwrite, keys, max_episode_steps):
        print(f"wrote {path}: {len(part):,} transitions in {int(part.episode_ends.sum()):,} episodes")
