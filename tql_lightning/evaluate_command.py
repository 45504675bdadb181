"""The command `tql evaluate`: what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from pathlib import Path
from typing import Any

from tql_lightning.nn.extraction import Extraction

COLUMNS = ("return", "success_rate", "normalized_score", "length")


def evaluate(
    checkpoints: list[str],
    episodes: int = 50,
    seed: int = 0,
    extraction: Extraction | None = None,
    env: str | None = None,
    num_envs: int = 10,
    parallel: bool = False,
    json: str | None = None,
    video: str | None = None,
    video_episodes: int = 3,
) -> None:
    """Plays evaluation episodes with the policies of checkpoints and prints a table with 95 % intervals.

    Args:
        checkpoints: .ckpt files, one or more.
        episodes: how many to play with each.
        seed: of the episodes and their noise, the same for every checkpoint.
        extraction: "fql", "implicit" or "behaviour_flow"; default: the model's own.
        env: Gymnasium id of the environment; default: the one that the dataset named.
        num_envs: environments that play at once; no influence on the result.
        parallel: a process for each environment, for slow environments.
        json: file to write the figures to as well, a list with an entry for each checkpoint.
        video: folder to film the first episodes into (MP4); a run's own is RUN/videos. Needs
            pip install tql-lightning[video], and without a display EGL or OSMesa (MUJOCO_GL).
        video_episodes: how many of them to film.
    """
    from tql_lightning.system.files import require_writable, write_text_whole

    for name, value in (("episodes", episodes), ("num_envs", num_envs), ("video_episodes", video_episodes)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, found {value}")
    if json:
        require_writable(Path(json))
    if video:
        from tql_lightning.evaluation.videos import require_video

        require_video()
    from tql_lightning.algorithms.loading import load_checkpoint
    from tql_lightning.evaluation.checkpoint import evaluate_checkpoint

    for checkpoint in checkpoints[1:]:
        load_checkpoint(checkpoint)  # a later one that cannot be used is told of before the first has been played
    folder = Path(video) if video else None
    filmed = min(video_episodes, episodes)
    figures = []
    for checkpoint in checkpoints:
        entry = evaluate_checkpoint(checkpoint, episodes, seed, extraction, env, num_envs, parallel, folder, filmed)
        figures.append(entry)
        print(table(entry), flush=True)
        for path in entry["videos"]:
            print(f"  wrote {path}")
        if json:
            write_text_whole(Path(json), dumps(figures, indent=2) + "\n")
    if json:
        print(f"wrote {json}")


def table(entry: Mapping[str, Any]) -> str:
    """What was played with a checkpoint, then mean, standard error and interval of each figure."""
    plural = "s" if entry["episodes"] > 1 else ""
    what = f"{entry['env_id']}, {entry['episodes']} episode{plural}, seed {entry['seed']}, {entry['extraction']}"
    lines = [
        f"{entry['checkpoint']} after {entry['updates']:,} updates: {what}",
        f"  {'':18}{'mean':>12}{'stderr':>12}{'95 % interval':>26}",
    ]
    for name in COLUMNS:
        if name in entry:
            low, high = entry[f"{name}_low"], entry[f"{name}_high"]
            interval = f"[{low:.3f}, {high:.3f}]" if low < high else "-"
            error = f"{entry[f'{name}_stderr']:.3f}" if entry["episodes"] > 1 else "-"  # says nothing of others
            lines.append(f"  {name:18}{entry[name]:12.3f}{error:>12}{interval:>26}")
    return "\n".join(lines)
