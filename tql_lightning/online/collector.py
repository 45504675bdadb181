"""Collects transitions with the policy that is being trained."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from tql_lightning.data.experience import Experience
from tql_lightning.data.replay import GrowingWindows, ReplayBuffer
from tql_lightning.evaluation.envs import EnvError, check_env, known_bounds
from tql_lightning.evaluation.rollout import reset_seed
from tql_lightning.online.explorer import Explorer
from tql_lightning.online.progress import FIGURES, Ints, Progress
from tql_lightning.online.settings import Online
from tql_lightning.online.watched_envs import WatchedEnvs
from tql_lightning.run.folder import REPLAY_FOLDER
from tql_lightning.training.distributed import gather_objects

STREAM = 0x6F6E6C696E65  # added to the data's seed, so that no episode has an evaluation's seed
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Steps:
    """What one step of a process's n environments gave.

    Attributes:
        columns: Fields of `Batch`, a row for each environment.
        ended: Whether the episode is over, (n,).
        successes: Success of each, NaN where the environment reports none, (n,).
        chunks: Actions that are executed open loop, (n, h, n_a).
    """

    columns: dict[str, NDArray[np.float32]]
    ended: Flags
    successes: NDArray[np.float64]
    chunks: NDArray[np.float32]


class Collector(Experience):
    """Plays episodes with the exploring policy, and writes every step into a replay buffer.

    Episode k of environment j has number k * num_envs + j; its reset seed and noise are functions of the seed and that
    number, and its actions are computed in row j of a batch. Several processes, of which each steps its share of the
    environments, thus collect what one process would.

    Rewards are the environment's. A mask is 0 where the environment terminated, and 1 at a time limit.

    Args:
        settings: Settings of the online phase.
    """

    def __init__(self, settings: Online) -> None:
        self.settings = settings
        self.mode = settings.mode
        self._state: dict[str, Any] | None = None
        self._at: Progress | None = None
        self._envs: WatchedEnvs | None = None
        self._observations: NDArray[Any] = np.zeros((0, 0))
        self._seconds, self._counted, self._since = 0.0, 0, time.perf_counter()

    @property
    def updates(self) -> int:
        """Number of online updates."""
        return self.settings.updates

    @property
    def fixed_settings(self) -> dict[str, Any]:
        """See `Experience.fixed_settings`."""
        return self.settings.fixed

    def env_steps(self, update: int) -> int:
        """Environment steps before an online update has been followed by the next, counted from 0."""
        return self.settings.num_envs * self.settings.rounds_before(update - 1) if update > 0 else 0

    def attach(self, trainer: Any, device: torch.device) -> None:
        """Checks environment and processes, opens the buffer, and continues a checkpoint's phase.

        Raises:
            ValueError: No environment is known, processes cannot have equal shares, a trainer step would reach over a
                round, or the checkpoint is of another phase.
            EnvError: The environment cannot be made, or its sizes are not the model's.
            DatasetError: The buffer's files cannot be made.
        """
        self._check(trainer)
        settings, data, model = self.settings, trainer.datamodule, trainer.lightning_module
        share = settings.num_envs // trainer.world_size
        self._own = np.arange(trainer.global_rank * share, (trainer.global_rank + 1) * share)
        self._seed = data.seed + STREAM
        self._explorer = Explorer(model, self._own, settings.num_envs, settings.random_steps, self._seed)
        folder = Path(trainer.default_root_dir) / REPLAY_FOLDER
        self._buffer = ReplayBuffer(
            data.dataset,
            settings.num_envs,
            settings.steps // settings.num_envs,
            device,
            trainer.strategy.root_device,
            folder if trainer.is_global_zero else None,
        )
        self.windows = GrowingWindows(self._buffer, data.span)
        self._at = Progress.start(settings.num_envs, model.action_chunk, model.env_action_dim)
        trainer.strategy.barrier()  # the first process has made the files
        if self._state is not None:
            self._at = self._restored(trainer, self._at, self._state)
            if not trainer.is_global_zero and self._at.rounds:
                self._buffer.copy_from(folder, self._at.rounds)
            self._replay(self._at)
        self._grow(self._at)

    def _check(self, trainer: Any) -> None:
        data, settings, model = trainer.datamodule, self.settings, trainer.lightning_module
        self._env_id = str(settings.env_id or data.env_id or "")
        if not self._env_id:
            raise ValueError("online.env_id: the dataset names no environment; give its Gymnasium id")
        if settings.num_envs % trainer.world_size:
            raise ValueError(
                f"online.num_envs: expected a multiple of {trainer.world_size} processes, found {settings.num_envs}"
            )
        for name, count in (("the offline phase", data.offline_updates), ("a round", settings.updates_per_round)):
            if count < 0 or count % data.updates_per_step:
                raise ValueError(
                    f"data.updates_per_step: expected a divisor of the {count} updates of {name}, found "
                    f"{data.updates_per_step}; 1 fits all"
                )
        if trainer.is_global_zero:
            bounds = known_bounds(data.dataset.action_low, data.dataset.action_high)
            limit = settings.max_episode_steps
            check_env(self._env_id, model.observation_dim, model.env_action_dim, bounds, limit)

    # ------------------------------------------------------------------ rounds

    def collect(self, update: int) -> None:
        """Makes the rounds that come before an online update."""
        assert self._at is not None
        started = time.perf_counter()
        while self._at.rounds < self.settings.rounds_before(update):
            self._round(self._at)
        self._seconds += time.perf_counter() - started

    def _round(self, at: Progress) -> None:
        """One step of every environment, of all processes, and what follows for the buffer."""
        shares: list[Steps | str] = gather_objects(self._step(at))
        failures = [share for share in shares if isinstance(share, str)]
        for own, share in zip(np.split(np.arange(len(at.first)), len(shares)), shares, strict=True):
            over = own
            if isinstance(share, Steps):
                self._buffer.write(at.rounds, own, share.columns)
                at.chunks[own] = share.chunks
                over = own[share.ended]
                for lane, success in zip(over, share.successes[share.ended], strict=True):
                    self._finish(at, int(lane), at.rounds, float(success))
            at.first[over] = at.rounds + 1
            at.numbers[over] += len(at.first)
        at.rounds += 1
        self._counted += len(at.first)
        self._grow(at)
        for failure in failures:
            self._count_failure(at, failure)

    def _finish(self, at: Progress, lane: int, last: int, success: float) -> None:
        first = int(at.first[lane])
        at.episodes = np.append(at.episodes, [[lane, first, last]], axis=0)
        rewards = self._buffer.read("rewards", lane, first, last + 1)
        reported = np.isfinite(success)
        at.ended += (1, rewards.sum(dtype=np.float64), len(rewards), success if reported else 0.0, reported)

    def _grow(self, at: Progress) -> None:
        self.windows.grow(at.episodes, at.first, at.rounds)

    def _count_failure(self, at: Progress, failure: str) -> None:
        """Warns of a failed environment.

        Raises:
            EnvError: There were too many failures.
        """
        at.broken += 1
        if at.broken > self.settings.max_broken_episodes:
            raise EnvError(
                f"{failure}\nonline.max_broken_episodes: expected at most {self.settings.max_broken_episodes} broken "
                f"episodes, found {at.broken}; mend the environment, or allow more"
            )
        rank_zero_warn(f"episodes in flight are dropped, training goes on: {failure}")

    def _step(self, at: Progress) -> Steps | str:
        """Steps this process's environments; an error's text if one fails, after which they are made anew."""
        own = self._own
        try:
            if self._envs is None:
                self._envs = self._make()
            begin = at.first[own] == at.rounds
            if begin.any():
                self._observations = self._envs.reset(self._reset_seeds(at), begin)
            chunks, position = self._explorer.decide(at, self._observations)
            actions = chunks[np.arange(len(own)), position]
            following, rewards, terminations, truncations, successes = self._envs.step(actions, np.ones_like(begin))
        except EnvError as error:
            self.close()
            return str(error)
        columns = {
            "observations": self._observations,
            "actions": actions,
            "rewards": np.asarray(rewards, dtype=np.float32),
            "next_observations": following,
            "masks": 1.0 - np.asarray(terminations, dtype=np.float32),
        }
        self._observations = following
        return Steps(columns, terminations | truncations, successes, chunks)

    def _make(self) -> WatchedEnvs:
        chosen = self.settings
        number = len(self._own)
        return WatchedEnvs(self._env_id, number, chosen.parallel, chosen.timeout, chosen.max_episode_steps)

    def _reset_seeds(self, at: Progress) -> list[int]:
        return [reset_seed(self._seed, int(number)) for number in at.numbers[self._own]]

    def metrics(self) -> dict[str, float]:
        """Failures; since the last call, means over the episodes that ended, speed, and share of time in collecting."""
        assert self._at is not None
        number, total, length, successes, reports = self._at.ended.tolist()
        found = {"online/broken_episodes": float(self._at.broken)}
        if number:
            found |= {"online/return": total / number, "online/length": length / number}
        if reports:
            found["online/success_rate"] = successes / reports
        now = time.perf_counter()
        if self._counted:
            found["online/env_steps_per_second"] = self._counted / self._seconds
            found["online/share_of_time"] = self._seconds / (now - self._since)
        self._at.ended = np.zeros(FIGURES)
        self._seconds, self._counted, self._since = 0.0, 0, now
        return found

    # ------------------------------------------------------------------ continuing

    def state_dict(self) -> dict[str, Any]:
        """Settings and progress; the transitions lie in the buffer's files, which are written to the disk here."""
        state = {"settings": self.settings.fixed}
        if self._at is None:
            return state
        if self._at.rounds:
            self._buffer.flush()
        return state | self._at.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps a checkpoint's state until `attach`."""
        self._state = state

    def _restored(self, trainer: Any, start: Progress, state: dict[str, Any]) -> Progress:
        """Checks a checkpoint's progress against its update."""
        at = start.restored(state)
        online = trainer.global_step - trainer.datamodule.offline_updates
        least = self.settings.rounds_before(online - 1) if online > 0 else 0
        most = self.settings.rounds_before(online) if online >= 0 else 0  # saved between collecting and the update
        if at is None or not least <= at.rounds <= min(most, self._buffer.steps):
            found = "another phase's" if at is None else f"{at.rounds}"
            raise ValueError(
                f"{trainer.ckpt_path}: expected {least} steps of each environment at update {trainer.global_step}, "
                f"after {trainer.datamodule.offline_updates} offline updates, found {found}; keep trainer.max_steps"
            )
        return at

    def _replay(self, at: Progress) -> None:
        """Plays the episodes in flight from their start with the same seeds and actions, as environments have no state.

        One that does not come to the same observation ends there, as at a time limit.
        """
        if not (at.first < at.rounds).any():
            return
        shares: list[Ints | str] = gather_objects(self._replayed(at))
        for own, share in zip(np.split(np.arange(len(at.first)), len(shares)), shares, strict=True):
            if isinstance(share, str):
                self._count_failure(at, share)
            lost = own[at.first[own] < at.rounds] if isinstance(share, str) else share
            if not len(lost):
                continue
            rank_zero_warn(
                f"environments {', '.join(map(str, lost))} did not come to the same observations again: their episodes "
                "end here, and the run is not bit for bit the one that was interrupted"
            )
            for lane in lost:
                self._finish(at, int(lane), at.rounds - 1, np.nan)
            at.first[lost] = at.rounds
            at.numbers[lost] += len(at.first)

    def _replayed(self, at: Progress) -> Ints | str:
        """Environments of this process that did not come to the same observation; an error's text if one failed."""
        own, rounds = self._own, at.rounds
        first, seeds = at.first[own], self._reset_seeds(at)
        differs, over = np.zeros((2, len(own)), dtype=np.bool_)
        try:
            self._envs = self._make()
            for step in range(int(first.min()), rounds):  # so that all end at the same time
                begin = over | (first == step) | (step == first.min())
                if begin.any():
                    self._observations = self._envs.reset(seeds, begin)
                actions = self._buffer.column("actions", own, step)
                self._observations, _, terminations, truncations, _ = self._envs.step(actions, first <= step)
                over = terminations | truncations
                differs |= over & (first <= step)
        except EnvError as error:
            self.close()
            return str(error)
        if first.min() < rounds:
            recorded = self._buffer.column("next_observations", own, rounds - 1)
            differs |= (recorded != self._observations).any(axis=1)
        lost: Ints = own[differs & (first < rounds)]
        return lost

    def close(self) -> None:
        """Closes the environments; the next round makes them anew."""
        if self._envs is not None:
            self._envs.close()
            self._envs = None
