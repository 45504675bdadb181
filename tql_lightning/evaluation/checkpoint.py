"""Evaluates a checkpoint: checkpoint -> policy -> rollout -> statistics."""

from __future__ import annotations

import json
from operator import index
from pathlib import Path
from typing import Any

from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.data.scores import scores_in
from tql_lightning.evaluation.envs import check_env, known_bounds
from tql_lightning.evaluation.rollout import RolloutResult, rollout
from tql_lightning.evaluation.smoothed_actor import smoothed_actor
from tql_lightning.nn.policy import Actor
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.folder import evaluation_file
from tql_lightning.system.files import write_text_whole
from tql_lightning.training.algorithm import Algorithm

NOT_IN_NAMES = ("/", ".", "..", "checkpoints")  # parts of a checkpoint's path that video names leave out


def write_evaluation(
    folder: Path, update: int, env_id: str, seed: int, result: RolloutResult, summary: dict[str, float]
) -> None:
    """Writes an evaluation into the folder of its run; see `run.folder`."""
    record = {"update": update, "env_id": env_id, "seed": seed, "episodes": len(result.returns)}
    text = json.dumps(record | result.as_lists() | {"summary": summary}, indent=2)
    write_text_whole(evaluation_file(folder, update), text + "\n")


def evaluate_checkpoint(
    path: Path | str,
    episodes: int,
    seed: int,
    extraction: str | None = None,
    env_id: str | None = None,
    num_envs: int = 10,
    parallel: bool = False,
    video_folder: Path | None = None,
    video_episodes: int = 1,
    smoothing: tuple[float, int] | None = None,
    max_episode_steps: int | None = None,
) -> dict[str, Any]:
    """Plays episodes with a checkpoint's policy.

    Args:
        path: Path of the checkpoint.
        episodes: Number of episodes.
        seed: Seed of the episodes and the noise.
        extraction: Name of the extraction; None for the model's setting, "smoothed" for the centre of its actions under
            observation noise.
        env_id: Environment; None for that of the checkpoint's dataset.
        num_envs: Number of environments that play at once.
        parallel: Whether each environment runs in its own process.
        video_folder: Folder for videos of the first episodes; None for none. Call `videos.require_video` before.
        video_episodes: Number of episodes to film.
        smoothing: For "smoothed", the noise's standard deviation and the samples of a decision; see `smoothed_actor`.
        max_episode_steps: Time limit of an episode; None for the one that the environment is registered with.

    Returns:
        Settings, means, standard errors, intervals and results per episode; JSON types only.

    Raises:
        CheckpointError: the checkpoint cannot be used, or names no environment.
        EnvError: the environment cannot be made or has no time limit, or its sizes or bounds are not the model's.
        ValueError: "smoothed" without ``smoothing``, or the other way round.
    """
    if (extraction == "smoothed") != (smoothing is not None):
        raise ValueError("sigma: expected with --extraction smoothed, and only with it")
    model, raw = load_checkpoint(path, plays=env_id is None)
    data = raw.get("OfflineDataModule", {})
    env_id = env_id or data.get("env_id")
    if env_id is None:
        raise CheckpointError(f"checkpoint {path}: its dataset names no environment; give one with --env")
    actor = _actor(model, extraction, smoothing)
    bounds = known_bounds(data.get("action_low"), data.get("action_high"))
    check_env(env_id, model.observation_dim, model.env_action_dim, bounds, max_episode_steps)
    reference_scores = scores_in(env_id, data.get("env_id"), data.get("reference_scores"))
    videos: list[Path] = []
    if video_folder is not None:
        from tql_lightning.evaluation.videos import film_episodes

        name = "_".join(part for part in Path(path).with_suffix("").parts if part not in NOT_IN_NAMES)
        videos = film_episodes(
            actor, env_id, video_episodes, seed, video_folder, name, max_episode_steps=max_episode_steps
        )
    result = rollout(actor, env_id, episodes, seed, num_envs, parallel, max_episode_steps=max_episode_steps)
    return {
        "checkpoint": str(path),
        "updates": int(raw["global_step"]),
        "env_id": env_id,
        "extraction": extraction or model.extraction,
        **({} if smoothing is None else {"sigma": smoothing[0], "smoothing_samples": smoothing[1]}),
        "episodes": len(result.returns),
        "seed": index(seed),
        **result.summary(reference_scores),
        **result.as_lists(),
        "videos": [str(video) for video in videos],
    }


def _actor(model: Algorithm, extraction: str | None, smoothing: tuple[float, int] | None) -> Actor:
    if extraction != "smoothed":
        return model.actor(extraction)
    assert smoothing is not None
    return smoothed_actor(model.actor(), model.observation_dim, *smoothing)
