"""Parameters of the authors' JAX code by their names and layouts: kernels (in, out), ensembles with a leading axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tql_lightning.nn.critic import MLPCritic
from tql_lightning.nn.gaussian_policy import GaussianPolicy
from tql_lightning.nn.mlp import MLP

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Named:
    """One array of the release.

    Attributes:
        name: Path in the release's parameter tree.
        parameters: The parameters here that hold it: one, or one of each member of an ensemble.
        to_release: Values of the parameters -> the release's layout.
        write: Writes the release's layout into the parameters.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    to_release: Callable[[list[Tensor]], Tensor]
    write: Callable[[Sequence[nn.Parameter], Tensor], object]


def plain(name: str, parameter: nn.Parameter) -> Named:
    """An array that is the parameter."""
    return Named(name, [parameter], lambda values: values[0], lambda own, array: own[0].copy_(array))


def kernel(name: str, parameter: nn.Parameter) -> Named:
    """A Dense layer's kernel (in, out), the transpose of ``Linear.weight``."""
    return Named(name, [parameter], lambda values: values[0].T, lambda own, array: own[0].copy_(array.T))


def ensemble(members: Sequence[Sequence[Named]]) -> Iterator[Named]:
    """The arrays of an ensemble, which stack those of its members."""
    for entries in zip(*members, strict=True):
        yield _stacked(entries)


def _stacked(entries: Sequence[Named]) -> Named:
    def to_release(values: list[Tensor]) -> Tensor:
        return torch.stack([entry.to_release([value]) for entry, value in zip(entries, values, strict=True)])

    def write(own: Sequence[nn.Parameter], array: Tensor) -> None:
        for entry, parameter, part in zip(entries, own, array, strict=True):
            entry.write([parameter], part)

    return Named(entries[0].name, [entry.parameters[0] for entry in entries], to_release, write)


def mlp(prefix: str, network: MLP) -> list[Named]:
    """Dense_i and LayerNorm_i of an MLP."""
    named = []
    for index, layer in enumerate(network.linear_layers):
        named += [kernel(f"{prefix}/Dense_{index}/kernel", layer.weight)]
        named += [plain(f"{prefix}/Dense_{index}/bias", layer.bias)]
    for index, norm in enumerate(network.norm_layers):
        named += [plain(f"{prefix}/LayerNorm_{index}/scale", norm.weight)]
        named += [plain(f"{prefix}/LayerNorm_{index}/bias", norm.bias)]
    return named


def mlp_critic(prefix: str, critic: nn.Module) -> list[Named]:
    """A value ensemble."""
    assert isinstance(critic, MLPCritic)
    return list(ensemble([mlp(f"{prefix}/value_net", member) for member in critic.members]))  # type: ignore[arg-type]


def gaussian_policy(prefix: str, policy: GaussianPolicy) -> list[Named]:
    """A Gaussian policy, whose last layer is ``mean_net``."""
    renamed = []
    last = f"{prefix}/actor_net/Dense_{len(policy.mean_network.linear_layers) - 1}/"
    for entry in mlp(f"{prefix}/actor_net", policy.mean_network):
        name = entry.name.replace(last, f"{prefix}/mean_net/")
        renamed.append(Named(name, entry.parameters, entry.to_release, entry.write))
    return renamed + ([] if policy.log_std is None else [plain(f"{prefix}/log_stds", policy.log_std)])


def release_arrays(named: Sequence[Named], read: Callable[[nn.Parameter], Tensor | None]) -> Arrays:
    """What ``read`` takes of every parameter, in the release's layout; arrays without any of it are left out."""
    arrays = {}
    for entry in named:
        values = [read(parameter) for parameter in entry.parameters]
        if all(value is not None for value in values):
            array = entry.to_release([value.detach() for value in values if value is not None])
            arrays[entry.name] = np.array(array.numpy())
    return arrays


def load_arrays(named: Sequence[Named], arrays: Arrays) -> None:
    """Sets every parameter; an array that is missing, left over or of another shape is an error."""
    assert {entry.name for entry in named} == arrays.keys()
    with torch.no_grad():
        for entry in named:
            expected = entry.to_release([parameter.detach() for parameter in entry.parameters]).shape
            assert expected == arrays[entry.name].shape, entry.name
            entry.write(entry.parameters, torch.from_numpy(arrays[entry.name]))
