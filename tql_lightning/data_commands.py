"""``tql data``: what a dataset holds, and any dataset in our own formats."""

from __future__ import annotations

from pathlib import Path


def inspect_command(name: str, plot: str | None = None) -> None:
    """Checks a dataset as training would, and prints what it holds.

    Args:
        name: "minari:ID"; an OGBench name such as "cube-double-play-singletask-task2-v0"; or the path of an .npz file,
            a D4RL .hdf5 file, or a folder of .npy files.
        plot: file to draw returns, episode lengths and rewards to (.png, .pdf, .svg).
    """
    from tql_lightning.data.environment import check_environment
    from tql_lightning.data.named import load_dataset
    from tql_lightning.data.summary import summarise
    from tql_lightning.system.files import require_writable

    if plot:
        require_writable(Path(plot))
    dataset = load_dataset(name)
    summary = summarise(dataset)
    print("\n".join(summary.lines()))
    if plot:
        from tql_lightning.report.plots import plot_dataset

        figures = {"return": summary.returns, "episode length": summary.lengths, "reward": dataset.rewards}
        print(f"wrote {plot_dataset(dataset.name, figures, Path(plot))}")
    problem = check_environment(dataset)  # last: the figures help to see what is wrong
    if problem:
        print(f"not compared with {dataset.env_id}, which cannot be made here ({problem})")


def convert_command(name: str, output: str, overwrite: bool = False) -> None:
    """Writes any dataset in our own formats; the very same transitions load from them.

    Args:
        name: "minari:ID"; an OGBench name such as "cube-double-play-singletask-task2-v0"; or the path of an .npz file,
            a D4RL .hdf5 file, or a folder of .npy files (of any numeric dtypes, with or without next observations).
        output: a path ending in .npz, or that of a folder to make, whose files are mapped rather than read; what the
            dataset holds out goes to OUTPUT-val beside it. Both appear only when whole.
        overwrite: replace an existing file.
    """
    from tql_lightning.data.named import convert

    for path, part in convert(name, output, overwrite):
        print(f"wrote {path}: {len(part):,} transitions in {int(part.episode_ends.sum()):,} episodes")
