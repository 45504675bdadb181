"""One offline dataset as Lightning's data: chunks of minibatches, drawn on the device that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_utilities.core.rank_zero import rank_zero_info

from tql_lightning.batch import UpdateSpec
from tql_lightning.data.environment import check_environment
from tql_lightning.data.experience import Experience, MixedSampler
from tql_lightning.data.sampler import (
    Request,
    TrainingStream,
    ValidationPass,
    rows_per_process,
)
from tql_lightning.data.storage import StorageChoice
from tql_lightning.data.transitions import DatasetError, TransitionDataset
from tql_lightning.data.windows import Span
from tql_lightning.system.whole_numbers import whole


class OfflineDataModule(LightningDataModule):
    """Loads a dataset once and samples it on the device, K minibatches at a time.

    Args:
        dataset: the transitions. On the command line: the class path of a function or class that gives a
            ``TransitionDataset``, with its arguments (``--data.dataset.task=3``).
        batch_size: transitions in one update, over all processes together; each takes an equal part of them.
        updates_per_step: K, updates in one step of the trainer. Callbacks are called once a step. Above 1 it saves
            Lightning's time around small updates, and every interval in updates has to be a multiple of K.
        seed: seed of the minibatches and of the noise in the losses.
        n_step: decisions whose rewards are summed before the value of the next is added; never across an
            episode's end or a termination.
        action_chunk: h, actions that one decision is made of and that are taken without looking again. The
            model's actions have h times the size, and it needs the same ``action_chunk``.
        discount: gamma of n-step returns and action chunks; the model's (taken from it by the CLI).
        storage: where transitions are held: "trainer" on the device that trains, "cpu" in main memory or, where
            they are memory-mapped, in their files; "auto" on a GPU that has twice their size free, else "cpu".
        release_windows: windows of ``n_step * action_chunk`` rows as in Q-chunking's release, which run over the ends
            of episodes; for ``QC`` alone, which gives rows that do so no weight.

    Raises:
        ValueError: a number is out of its range.
        DatasetError: ``dataset`` is something else.

    Examples:
        >>> from tql_lightning import load_dataset
        >>> data = OfflineDataModule(load_dataset("mine.npz"), batch_size=64)
        >>> data.observation_dim, data.action_dim
        (3, 1)
    """

    def __init__(
        self,
        dataset: TransitionDataset,
        batch_size: int = 256,
        updates_per_step: int = 1,
        seed: int = 0,
        n_step: int = 1,
        action_chunk: int = 1,
        discount: float = 0.99,
        storage: StorageChoice = "auto",
        release_windows: bool = False,
    ) -> None:
        super().__init__()
        self.batch_size = whole("data.batch_size", batch_size, at_least=1)
        self.updates_per_step = whole("data.updates_per_step", updates_per_step, at_least=1)
        self.seed = whole("data.seed", seed)
        if not isinstance(dataset, TransitionDataset):
            raise DatasetError(
                f"data.dataset: expected a TransitionDataset, found {type(dataset).__name__}; build one with "
                "TransitionDataset.from_arrays"
            )
        self.dataset = dataset
        steps = whole("data.n_step", n_step), whole("data.action_chunk", action_chunk)
        self.span = Span(*steps, float(discount), release_windows)
        if storage not in get_args(StorageChoice):
            raise ValueError(f"data.storage: expected {', '.join(get_args(StorageChoice))}, found {storage}")
        self.storage: StorageChoice = storage
        self.experience: Experience | None = None
        self._sampler: MixedSampler | None = None

    def go_online(self, experience: Experience) -> None:
        """Lets the last ``experience.updates`` updates of a fit be online ones, those before it offline.

        Args:
            experience: What collects transitions.

        Raises:
            ValueError: The data's windows run over the ends of episodes (``release_windows``).
        """
        if self.span.release_windows:
            raise ValueError(
                "data.release_windows: expected false with an online phase, since episodes of several environments lie "
                "side by side, found true; set it to false"
            )
        self.experience = experience

    @property
    def offline_updates(self) -> int | None:
        """Updates before the online phase; None without one."""
        if self.experience is None:
            return None
        return int(self._attached_trainer().max_steps) - self.experience.updates

    def env_steps(self, update: int) -> dict[str, float]:
        """Environment steps at an update, under the name that they are logged with; empty without an online phase."""
        if self.experience is None or self.offline_updates is None:
            return {}
        return {"env_steps": float(self.experience.env_steps(update - self.offline_updates))}

    def online_metrics(self) -> dict[str, float]:
        """Figures of the online phase since the last call; empty without one."""
        return {} if self.experience is None else self.experience.metrics()

    def setup(self, stage: str) -> None:
        """Refuses a dataset that does not fit the environment it names; see `check_environment`."""
        check_environment(self.dataset)

    @property
    def observation_dim(self) -> int:
        """n_s."""
        return self.dataset.observation_dim

    @property
    def action_dim(self) -> int:
        """Size of one decision, h * n_a."""
        return self.span.action_chunk * self.dataset.action_dim

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Smallest and largest reward of the transitions that continue; None if none does."""
        return self.dataset.reward_range

    @property
    def final_reward_range(self) -> tuple[float, float] | None:
        """Smallest and largest reward of the transitions that terminate; None if none does."""
        return self.dataset.final_reward_range

    @property
    def action_range(self) -> tuple[list[float], list[float]]:
        """Smallest and largest action of each dimension of a decision."""
        low, high = self.dataset.action_range
        return self.span.action_chunk * low, self.span.action_chunk * high

    @property
    def env_id(self) -> str | None:
        """Gymnasium id of the environment that the data come from, or None if the dataset names none."""
        return self.dataset.env_id

    def train_dataloader(self) -> TrainingStream:
        """Chunks from the trainer's current update to its last."""
        trainer = self._attached_trainer()
        self._check_model(trainer.lightning_module)
        if trainer.world_size > 1:
            per_process = rows_per_process(self.batch_size, trainer.world_size)
            rank_zero_info(
                f"data.batch_size: {self.batch_size} transitions an update, {per_process} on each of "
                f"{trainer.world_size} processes"
            )
        self._sampler = MixedSampler(
            self.dataset,
            self.batch_size,
            self.seed,
            device=trainer.strategy.root_device,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            span=self.span,
            storage=self.storage,
            spec=_spec_of(trainer),
        )
        last_update = None if trainer.max_steps < 0 else trainer.max_steps
        chunk: Callable[[int, int], Any] = self._sampler.chunk
        if self.experience is not None:
            self.experience.attach(trainer, self._sampler.windows.storage.device)
            chunk = Request  # Lightning asks for a chunk ahead of time
        return TrainingStream(chunk, lambda: trainer.global_step, self.updates_per_step, last_update)

    def val_dataloader(self) -> Iterable[tuple[Any, Any]]:
        """The held-out transitions in order; empty where the dataset holds none out."""
        return self._held_out()

    def test_dataloader(self) -> Iterable[tuple[Any, Any]]:
        """The same held-out transitions as for validation."""
        return self._held_out()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Returns the batch, which lies on the trainer's device already; draws a `Request`, online after collecting."""
        if not isinstance(batch, Request):
            return batch
        assert self._sampler is not None
        assert self.experience is not None
        assert self.offline_updates is not None
        if batch.first_update >= self.offline_updates:
            self.experience.collect(batch.first_update - self.offline_updates)
            self._sampler.experience = self.experience
        return self._attached_trainer().precision_plugin.convert_input(self._sampler.chunk(*batch))

    def teardown(self, stage: str) -> None:
        """Closes the environments of an online phase."""
        if self.experience is not None:
            self.experience.close()

    def _held_out(self) -> Iterable[tuple[Any, Any]]:
        validation = self.dataset.validation
        if validation is None:
            return []
        trainer = self._attached_trainer()
        # Processes that hold shares of the weights gather them for every batch, so that each takes all batches.
        sharded = isinstance(trainer.strategy, ModelParallelStrategy)
        return ValidationPass(
            validation,
            self.batch_size,
            self.seed,
            device=trainer.strategy.root_device,
            rank=0 if sharded else trainer.global_rank,
            world_size=1 if sharded else trainer.world_size,
            span=self.span,
            storage=self.storage,
            spec=_spec_of(trainer),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns environment, bounds of actions and reference scores, for loading a checkpoint.

        Also returns the settings of the stream of minibatches, which a continued run must not change.
        """
        return {
            "name": self.dataset.name,
            "env_id": self.dataset.env_id,
            "action_low": self.dataset.action_low.tolist(),
            "action_high": self.dataset.action_high.tolist(),
            "reference_scores": self.dataset.reference_scores,
            "stream": self.stream_settings,
            **({} if self.experience is None else {"online": self.experience.state_dict()}),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues an online phase; everything else follows from the settings."""
        if self.experience is not None and "online" in state_dict:
            self.experience.load_state_dict(state_dict["online"])

    @property
    def stream_settings(self) -> dict[str, Any]:
        """Settings that decide which transitions an update sees, and as what."""
        return {
            "dataset": self.dataset.name,
            "transitions": len(self.dataset.observations),
            "digest": self._digest,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "n_step": self.span.n_step,
            "release_windows": self.span.release_windows,
        }

    @cached_property
    def _digest(self) -> str:
        return self.dataset.digest()

    def _check_model(self, model: Any) -> None:
        """Refuses a model of other sizes, or one that decides or discounts otherwise than the data are made for."""
        read = getattr(getattr(model, "Batch", None), "_fields", ())
        if self.span.release_windows and "valid" not in read:
            raise ValueError(
                f"data.release_windows: expected false with {type(model).__name__}, which learns from windows that "
                "run over the end of an episode, found true; set it to false, or train QC"
            )
        discounts = self.span.steps > 1 or "monte_carlo_returns" in read
        for name in ("action_chunk", "discount") if discounts else ("action_chunk",):
            ours, theirs = getattr(self.span, name), getattr(model, name, None)
            if theirs is not None and theirs != ours:
                raise ValueError(
                    f"data.{name}: expected the model's {name}, {theirs}, found {ours}; give OfflineDataModule and the "
                    "model the same"
                )
        for name in ("observation_dim", "action_dim"):
            ours, theirs = getattr(self, name), getattr(model, name, None)
            if theirs is not None and theirs != ours:
                raise ValueError(
                    f"model.{name}: expected the data's, {ours}, found {theirs}; make "
                    f"the {type(model).__name__} of data.observation_dim and data.action_dim, or train on the data "
                    "that it was made for"
                )

    def _attached_trainer(self) -> Any:
        if self.trainer is None:
            raise RuntimeError("OfflineDataModule samples on the trainer's device; pass it to a Trainer's fit")
        return self.trainer


def _spec_of(trainer: Any) -> UpdateSpec:
    """What an update of the trainer's model reads; a module that does not say gets transitions without noise."""
    spec: UpdateSpec = getattr(trainer.lightning_module, "update_spec", UpdateSpec())
    return spec
