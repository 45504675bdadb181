"""The contract of an algorithm: subclass `AlgorithmContract` in a test file, and pytest runs it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.batch import at_update
from tql_lightning.data.sampler import TransitionSampler
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.data.windows import Span
from tql_lightning.export.policy import Policy
from tql_lightning.export.writer import export_checkpoint
from tql_lightning.online.settings import Online
from tql_lightning.system.private_api import recompilation_raises
from tql_lightning.testing.observers import Gradients, observers
from tql_lightning.testing.problems import (
    ACTION_DIM,
    CLONED_REWARD,
    ENVIRONMENT,
    OBSERVATION_DIM,
    mean_reward,
    preferences,
    random_transitions,
)
from tql_lightning.testing.short_runs import BATCH_SIZE, train_briefly, trained_state
from tql_lightning.training.algorithm import Algorithm

UPDATES, STOP_AT = 8, 5
WITHIN_ROUNDING = 1e-9  # of float64, relative for numbers above 1
EXPORTED = 1e-5  # largest difference of an exported action
PATIENCE = 600.0  # seconds for two processes that need a few, where many programs wait for few cores


class AlgorithmContract(ABC):
    """What training, resume, several processes, compilation, evaluation and export rely on, as tests of one algorithm.

    Subclass it in a test file, and pytest runs it. Networks should be small, and learning rates high enough to learn in
    ``learning_updates``: the whole contract is to take seconds. A test's message names what does not hold.

    Attributes:
        learning_updates: Updates in which the algorithm has to beat behaviour cloning.
        learning_batch_size: Transitions of each of them.
        margin: By how much of a reward in [0, 1] it has to; see `problems.preferences`.
        clones: The algorithm is behaviour cloning itself, so that it need not beat it.
        without_gradient: Names of trainable parameters whose gradient is exactly zero by the mathematics, so that they
            need not move, such as a bias that a following normalisation takes away. A parameter listed here that has a
            gradient is an error.
        data: Further settings of `OfflineDataModule`, such as ``{"n_step": 3, "action_chunk": 2}``; the action
            dimension that `make` is given is that of ``action_chunk`` actions.

    Examples:
        >>> from functools import partial
        >>> from tql_lightning import TQL, MLPCritic
        >>> class TestMine(AlgorithmContract):
        ...     def make(self, observation_dim, action_dim):
        ...         return TQL(observation_dim, action_dim, critic=partial(MLPCritic, hidden_dims=(32, 32)))
    """

    learning_updates: ClassVar[int] = 300
    learning_batch_size: ClassVar[int] = 128
    margin: ClassVar[float] = 0.1
    clones: ClassVar[bool] = False
    without_gradient: ClassVar[frozenset[str]] = frozenset()
    data: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def make(self, observation_dim: int, action_dim: int) -> Algorithm:
        """A new algorithm with small networks; the same weights for the same state of torch's generator.

        Rewards of the contract's data lie in [0, 1], for algorithms that ask for their range.
        """

    # ------------------------------------------------------------------ the contract

    def test_every_trainable_parameter_is_in_one_group_and_moves(self, tmp_path: Path) -> None:
        """Each has a gradient at some update, and is another number after a few."""
        model = self.new_model()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        gradients = Gradients()
        self.fit(tmp_path, model, UPDATES, callbacks=[gradients])
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert self.without_gradient <= trainable, f"without_gradient: no parameter {self.without_gradient - trainable}"
        dead = trainable - gradients.nonzero
        assert dead <= self.without_gradient, (
            f"no loss reaches {', '.join(sorted(dead - self.without_gradient))}; use them in `losses`, do not train "
            "them (requires_grad_(False)), or list them in without_gradient if their gradient is zero by mathematics"
        )
        assert self.without_gradient <= dead, f"without_gradient: {self.without_gradient - dead} has a gradient"
        still = [name for name in sorted(trainable - dead) if torch.equal(before[name], model.get_parameter(name))]
        assert not still, f"has a gradient and never moves: {', '.join(still)}; is its learning rate 0?"

    def test_the_losses_are_a_function_of_their_inputs(self) -> None:
        """The same numbers whatever torch's generators do, with and without metrics; arguments stay as they are."""
        model = self.new_model().eval()
        batch, noise = self.minibatch(model)
        given = [each.clone() for each in (*batch, *noise)]
        found = []
        for seed, with_metrics in ((0, True), (1, True), (2, False)):
            torch.manual_seed(seed)
            found.append(copy.deepcopy(model).losses(batch, noise, model.inputs(0), with_metrics))
        first, again, plain = found
        assert torch.equal(first.total, again.total), "losses draw random numbers; declare them in `Noise`"
        assert torch.equal(first.total, plain.total), "the loss depends on with_metrics"
        assert first.total.ndim == 0, f"total: expected a scalar, found shape {tuple(first.total.shape)}"
        for name, metric in first.metrics.items():
            assert metric.ndim == 0, f"metrics[{name!r}]: expected a scalar, found shape {tuple(metric.shape)}"
            assert torch.equal(metric, again.metrics[name]), f"metrics[{name!r}] draws random numbers"
        for before, after in zip(given, (*batch, *noise), strict=True):
            assert torch.equal(before, after), "losses write into their arguments"

    def test_a_run_that_stops_and_continues_is_the_whole_run_bit_for_bit(self, tmp_path: Path) -> None:
        """Weights, targets and the optimizer's state."""
        whole = self.fit(tmp_path, self.new_model(), UPDATES)
        stopped = self.fit(tmp_path, self.new_model(), UPDATES, stop_at=STOP_AT)
        stopped.save_checkpoint(tmp_path / "stopped.ckpt")
        continued = self.fit(tmp_path, self.new_model(seed=1), UPDATES, ckpt_path=tmp_path / "stopped.ckpt")
        found, expected = trained_state(continued), trained_state(whole)
        assert found.keys() == expected.keys()
        differing = [name for name, value in expected.items() if not torch.equal(value, found[name])]
        assert not differing, f"a continued run differs in {', '.join(differing)}; what a checkpoint misses is lost"

    def test_an_online_phase_that_stops_and_continues_is_the_whole_one_bit_for_bit(self, tmp_path: Path) -> None:
        """What the exploring policy collects, and what is learned from it; action chunks are executed open loop."""
        online = Online(steps=12, num_envs=2, env_id=ENVIRONMENT, start_steps=4)
        found = []
        for folder, stops in (("whole", ()), ("parts", (STOP_AT,))):
            checkpoint = None
            for seed, stop in enumerate((*stops, None)):
                run = self.fit(
                    tmp_path / folder, self.new_model(seed), 2, stop_at=stop, ckpt_path=checkpoint, online=online
                )
                checkpoint = tmp_path / folder / "stopped.ckpt"
                run.save_checkpoint(checkpoint)
            rows = {path.stem: torch.from_numpy(np.load(path)) for path in (tmp_path / folder).glob("replay/*.npy")}
            found.append(trained_state(run) | rows)
        expected, continued = found
        assert expected["actions"].abs().max() > 0.0, "nothing was collected"
        differing = [name for name, value in expected.items() if not torch.equal(value, continued[name])]
        assert not differing, f"a continued online phase differs in {', '.join(differing)}"

    def test_two_processes_train_as_one(self, tmp_path: Path) -> None:
        """In float64, to rounding: a loss that is no mean over rows has to divide by `whole_mean` of a statistic."""
        kind = type(self)
        command = [sys.executable, "-m", "tql_lightning.testing.processes", kind.__module__, kind.__qualname__]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        finished = subprocess.run(
            [*command, str(tmp_path)], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        two = torch.load(tmp_path / "two.pt", weights_only=True)
        for name, value in self.train_in_float64(tmp_path, 1).items():
            distance = (two[name] - value).abs() / value.abs().clamp(min=1.0)
            assert bool((distance <= WITHIN_ROUNDING).all()), f"two processes differ from one in {name} ({distance})"

    def test_the_losses_compile_into_one_graph(self) -> None:
        """Without breaks, and without another graph at another update."""
        model = self.new_model()
        model.execution = replace(model.execution, compile=True)
        inputs = [model.inputs(update) for update in range(3)]
        minibatches = [self.minibatch(model, update) for update in range(3)]
        torch.compiler.reset()
        compiled = torch.compile(copy.deepcopy(model).losses, fullgraph=True, dynamic=False, backend="eager")
        with recompilation_raises():
            for update, (batch, noise) in enumerate(minibatches):
                torch.manual_seed(0)
                found = compiled(batch, noise, inputs[update])
                torch.manual_seed(0)
                expected = model.losses(batch, noise, inputs[update])
                torch.testing.assert_close(found.total, expected.total)
        torch.compiler.reset()

    def test_observers_do_not_change_training(self, tmp_path: Path) -> None:
        """Neither validation, nor checkpoints, nor callbacks that act, take losses and draw random numbers."""
        plain = self.fit(tmp_path, self.new_model(), UPDATES)
        often: dict[str, Any] = {"val_check_interval": 2, "log_every_n_steps": 1, "enable_checkpointing": True}
        watched = self.fit(tmp_path, self.new_model(), UPDATES, callbacks=observers(tmp_path), **often)
        found, expected = trained_state(watched), trained_state(plain)
        differing = [name for name, value in expected.items() if not torch.equal(value, found[name])]
        assert not differing, f"observers change {', '.join(differing)}"

    def test_a_checkpoint_loads_without_arguments_or_pickle(self, tmp_path: Path) -> None:
        """The same class, weights and settings, from the checkpoint alone."""
        checkpoint = self.short_run(tmp_path)
        trained = torch.load(checkpoint, weights_only=True)  # refuses pickled objects
        model, _ = load_checkpoint(checkpoint)
        assert type(model) is type(self.new_model())
        assert not any(module.training for module in model.modules()), "`train(False)` leaves a module in training mode"
        for name, value in model.state_dict().items():
            assert torch.equal(value, trained["state_dict"][name]), f"the checkpoint's {name} is not loaded"
        assert model.current_update == STOP_AT

    def test_the_exported_policy_acts_like_the_checkpoint(self, tmp_path: Path) -> None:
        """As ONNX; `export_checkpoint` compares, with noise and without, in batches of one and of many."""
        checkpoint = self.short_run(tmp_path)
        exported = export_checkpoint(checkpoint, tmp_path / "exported")
        assert exported.largest_difference <= EXPORTED
        policy, actor = Policy.load(exported.folder), load_checkpoint(checkpoint)[0].actor()
        rng = np.random.default_rng(2)
        observations = rng.normal(size=(4, OBSERVATION_DIM)).astype(np.float32)
        noise = rng.normal(size=(4, *policy.noise_shape)).astype(np.float32)
        with torch.no_grad():
            expected = actor.act(torch.from_numpy(observations), torch.from_numpy(noise))
        found = policy.act(observations, noise=noise).reshape(expected.shape)
        np.testing.assert_allclose(found, expected.numpy(), atol=EXPORTED)

    def test_it_beats_behaviour_cloning(self, tmp_path: Path) -> None:
        """On decisions of which those are rewarded that the untrained policy avoids; see `problems.preferences`."""
        if self.clones:
            pytest.skip("the algorithm is behaviour cloning")
        model = self.new_model()
        sign = 1.0 if mean_reward(model.eval().actor(), 1.0) <= CLONED_REWARD else -1.0
        dataset = preferences(sign, self.action_chunk)
        self.fit(tmp_path, model.train(), self.learning_updates, dataset, batch_size=self.learning_batch_size)
        reached = mean_reward(model.eval().actor(), sign)
        assert reached >= CLONED_REWARD + self.margin, (
            f"mean reward {reached:.3f} after {self.learning_updates} updates; cloning has {CLONED_REWARD}, expected "
            f"at least {self.margin} more; does the policy follow the values, and do learning rates suffice?"
        )

    # ------------------------------------------------------------------ what the tests share

    def short_run(self, folder: Path) -> Path:
        """The checkpoint of a few updates."""
        self.fit(folder, self.new_model(), STOP_AT).save_checkpoint(folder / "last.ckpt")
        return folder / "last.ckpt"

    @property
    def action_chunk(self) -> int:
        """Actions of one decision."""
        return int(self.data.get("action_chunk", 1))

    def new_model(self, seed: int = 0) -> Algorithm:
        """A new algorithm for the sizes of the contract's data."""
        torch.manual_seed(seed)
        return self.make(OBSERVATION_DIM, self.action_chunk * ACTION_DIM)

    def minibatch(self, model: Algorithm, update: int = 0) -> tuple[Any, Any]:
        """Batch and noise of an update on random transitions."""
        span = Span(self.data.get("n_step", 1), self.action_chunk, getattr(model, "discount", 0.99))
        sampler = TransitionSampler(random_transitions(), BATCH_SIZE, seed=0, span=span, spec=model.update_spec)
        batches, noises = sampler.chunk(update, 1)
        return at_update(batches, 0), at_update(noises, 0)

    def fit(
        self,
        folder: Path,
        model: Algorithm,
        updates: int,
        dataset: TransitionDataset | None = None,
        **settings: Any,
    ) -> Trainer:
        """Trains a model on the CPU, on random transitions if no dataset is given; see `train_briefly`."""
        return train_briefly(folder, model, updates, dataset or random_transitions(), self.data, **settings)

    def train_in_float64(self, folder: Path, processes: int) -> dict[str, Tensor]:
        """The state after a short run of one process, or of one of several."""
        model = self.new_model().double()
        strategy = "auto" if processes == 1 else "ddp"
        settings: dict[str, Any] = {"devices": processes, "strategy": strategy, "precision": "64-true"}
        return trained_state(self.fit(folder, model, UPDATES, **settings, log_every_n_steps=1))
