"""A new run starts from another run's weights, which have to fit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.command_line import TINY, call_tql
from tests.toy import fit, toy_model
from tql_lightning.algorithms.starting import load_weights
from tql_lightning.callbacks.checkpointing import LastCheckpoint
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.value_loss import HLGauss
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import WholeCheckpointIO, read_checkpoint
from tql_lightning.training.algorithm import Algorithm

CONFIGURED = ("--config", "tiny.yaml", "--data.dataset=tests.toy.toy_dataset", "--trainer.logger=false")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 updates with its last checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    fit(folder, toy_model(), 6, [LastCheckpoint(str(folder / "checkpoints"))], plugins=WholeCheckpointIO())
    return folder


def changed(model: Algorithm) -> Algorithm:
    """The model with every weight moved."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


def taken(model: Algorithm, run: Path) -> set[str]:
    """Names of the model's tensors that are the checkpoint's, among those that the checkpoint has."""
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    return {name for name, tensor in model.state_dict().items() if torch.equal(tensor, saved[name])}


def test_all_weights_are_taken_over_from_a_run_or_its_checkpoint(run: Path) -> None:
    for path in (run, run / "checkpoints" / "last.ckpt"):
        model = changed(toy_model())
        load_weights(model, path)
        assert taken(model, run) == set(model.state_dict())


def test_named_parts_alone_are_taken_over(run: Path) -> None:
    model = changed(toy_model())
    load_weights(model, run, parts=["policy.one_step_policy", "temperature"])
    names = {name for name in model.state_dict() if name.startswith(("policy.one_step_policy.", "temperature."))}
    assert taken(model, run) == names


def test_weights_of_other_shapes_are_refused_with_both(run: Path) -> None:
    model = toy_model(critic=partial(TransformerCritic, hidden_dim=24, head_dim=8))
    with pytest.raises(CheckpointError, match=r"critic\.\S+: \(16.*\) there, \(24.*\) here") as caught:
        load_weights(model, run)
    assert "weights_parts" in str(caught.value)
    load_weights(model, run, parts=["policy"])


def test_parts_that_are_not_there_are_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected parts of checkpoint .*critic.*, found polici"):
        load_weights(toy_model(), run, parts=["polici"])
    with pytest.raises(ValueError, match="weights_parts: expected one or more names"):
        load_weights(toy_model(), run, parts=[])


def test_values_that_come_to_stand_for_others_cause_a_warning(tmp_path: Path) -> None:
    settings = {"value_loss": partial(HLGauss, num_bins=11), "final_reward_range": None}
    fit(tmp_path, toy_model(reward_range=(-1.0, 0.0), **settings), 1, [LastCheckpoint(str(tmp_path))])
    load_weights(toy_model(reward_range=(-1.0, 0.0), **settings), tmp_path)
    with pytest.warns(UserWarning, match=r"critic.bins.centres.* what the loaded weights stand for"):
        load_weights(toy_model(reward_range=(-2.0, 0.0), **settings), tmp_path)


def test_the_optimizer_starts_fresh_or_with_that_runs_moments(run: Path, tmp_path: Path) -> None:
    steps = {}
    for kept in (False, True):
        model = toy_model(learning_rate=1e-5)
        load_weights(model, run, with_optimizer=kept)
        trainer = fit(tmp_path / str(kept), model, 2)
        (optimizer,) = trainer.optimizers
        steps[kept] = {float(state["step"]) for state in optimizer.state.values()}
        assert {group["initial_lr"] for group in optimizer.param_groups} == {1e-5}
        assert trainer.global_step == 2
    assert steps == {False: {2.0}, True: {8.0}}
    with pytest.raises(ValueError, match="weights_optimizer: expected false with weights_parts"):
        load_weights(toy_model(), run, ["policy"], with_optimizer=True)


@pytest.mark.slow  # four command lines
def test_the_command_line_starts_a_new_run_from_weights(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert call_tql(tmp_path, "fit", *CONFIGURED, "--trainer.max_steps=2").returncode == 0
    begin = ("fit", *CONFIGURED, "--trainer.default_root_dir=next", "--trainer.max_steps=1", "--weights=run")
    assert call_tql(tmp_path, *begin, "--model.optimisation.learning_rate=0").returncode == 0
    was, now = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("run", "next"))
    assert now["global_step"] == 1
    trained = [name for name in was["state_dict"] if name.startswith("critic.")]
    assert trained
    assert all(torch.equal(was["state_dict"][name], now["state_dict"][name]) for name in trained)
    validated = call_tql(tmp_path, "validate", "--config", "next/config.yaml", "--ckpt_path=last")
    assert validated.returncode == 0, validated.stderr
    alone = call_tql(tmp_path, "fit", *CONFIGURED, "--trainer.default_root_dir=other", "--weights_parts=[policy]")
    assert alone.returncode == 2
    assert "weights_parts: expected only together with weights" in alone.stderr
