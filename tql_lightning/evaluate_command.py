"""The command `tql evaluate`: what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

from tql_lightning.extraction import Extraction

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
    from tql_lightning.data.files import require_writable, write_text_whole

    if json:
        require_writable(Path(json))
    if video:
        from tql_lightning.videos import require_video

        require_video()
    from tql_lightning.evaluation import evaluate_checkpoint

    folder = Path(video) if video else None
    figures = [
        evaluate_checkpoint(
            checkpoint, episodes, seed, extraction, env, num_envs, parallel, folder, min(video_episodes, episodes)
        )
        for checkpoint in checkpoints
    ]
    print(table(figures))
    for path in [path for entry in figures for path in entry["videos"]]:
        print(f"wrote {path}")
    if json:
        write_text_whole(Path(json), dumps(figures, indent=2) + "\n")
        print(f"wrote {json}")


def table(figures: Sequence[dict[str, Any]]) -> str:
    """A block for each checkpoint: what was played, then mean, standard error and interval of each figure."""
    lines = []
    for entry in figures:
        what = f"{entry['env_id']}, {entry['episodes']} episodes, seed {entry['seed']}, {entry['extraction']}"
        lines += [f"{entry['checkpoint']} after {entry['updates']:,} updates: {what}"]
        lines += [f"  {'':18}{'mean':>12}{'stderr':>12}{'95 % interval':>26}"]
        for name in COLUMNS:
            if name in entry:
                interval = f"[{entry[f'{name}_low']:.3f}, {entry[f'{name}_high']:.3f}]"
                lines.append(f"  {name:18}{entry[name]:12.3f}{entry[f'{name}_stderr']:12.3f}{interval:>26}")
    return "\n".join(lines)
