"""Writes the policy of any algorithm as the two networks of the ONNX format."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tql_lightning.export.comparison import ExportError
from tql_lightning.export.policy_folder import FILES
from tql_lightning.nn.policy import Actor

MAX_REASON = 300  # characters of torch's message


class ActingNetwork(nn.Module):
    """An actor as a network whose actions are in the environment's units.

    Args:
        model: Module that holds the actor's networks.
        actor: Actor of the module.
        action_low: Lower bounds of the actions, (n_a,).
        action_high: Upper bounds of the actions, (n_a,).
    """

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self, model: nn.Module, actor: Actor, action_low: Sequence[float], action_high: Sequence[float]
    ) -> None:
        super().__init__()
        self.model, self.actor = model, actor
        self.register_buffer("action_low", torch.tensor(action_low, dtype=torch.float32))
        self.register_buffer("action_high", torch.tensor(action_high, dtype=torch.float32))

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        """(B, n_s) and (B, *noise_shape) -> (B, n_a) between ``action_low`` and ``action_high``."""
        return self.scaled(self.actor.act(observations, noise))

    def scaled(self, actions: Tensor) -> Tensor:
        """Scales actions from [-1, 1] to the environment's units."""
        return self.action_low + (actions + 1.0) * ((self.action_high - self.action_low) / 2.0)


class DeterministicNetwork(nn.Module):
    """An acting network with zero noise."""

    def __init__(self, network: ActingNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor) -> Tensor:
        """(B, n_s) -> (B, n_a)."""
        return self.network.scaled(self.network.actor.deterministic(observations))


def write_onnx(network: ActingNetwork, metadata: Mapping[str, Any], folder: Path) -> None:
    """Writes policy.onnx and policy_deterministic.onnx.

    Args:
        network: Network to write, in evaluation mode.
        metadata: Content of metadata.json, for the sizes.
        folder: Folder to write into.

    Raises:
        ExportError: A package is missing, or torch cannot write the network.
    """
    try:
        import onnxruntime  # noqa: F401  (the comparison needs it)
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ModuleNotFoundError as error:
        raise ExportError(f'format onnx: {error}; pip install "tql-lightning[export]"') from error
    # The exporter warns about operators of packages that are neither installed nor used.
    logging.getLogger("torch.onnx._internal.exporter").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch")
    observations = torch.zeros(2, metadata["observation_dim"])
    inputs = {"observations": observations, "noise": torch.zeros(2, *metadata["noise_shape"])}
    modules = {network: ("observations", "noise"), DeterministicNetwork(network).eval(): ("observations",)}
    for name, (module, names) in zip(FILES["onnx"], modules.items(), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own code
            try:
                program = torch.onnx.export(
                    module,
                    tuple(inputs[each] for each in names),
                    input_names=names,
                    output_names=["actions"],
                    dynamic_shapes={each: {0: batch} for each in names},
                    dynamo=True,
                    verbose=False,
                )
            except torch.onnx.OnnxExporterError as error:
                reason = " ".join(str(error.__cause__ or error).split())[:MAX_REASON]
                raise ExportError(
                    "format onnx: expected an actor of torch operations that takes batches of any size, found one that "
                    f"torch.onnx cannot export ({reason})"
                ) from error
        assert program is not None
        program.save(folder / name)
