"""Converts parameters from and to the names and layouts of the authors' JAX release.

The release's names are paths in its parameter tree ("critic/transformer_block_0/query/kernel"). Its kernels are
(in, out) where torch's are (out, in). Its query, key and value are separate (H, h, e) arrays where ours are one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from tql_lightning.algorithms.tql import TQL
from tql_lightning.data.sources.npz import open_npz
from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.critic import Critic, TransformerCritic
from tql_lightning.nn.mlp import MLP
from tql_lightning.nn.temperature import AttentionTemperature
from tql_lightning.system.files import write_whole

TEMPERATURE = "attention_entropy_temperature/"

Arrays = dict[str, np.ndarray]
Read = Callable[[Tensor], Tensor | None]


def release_arrays(model: TQL, read: Read = lambda parameter: parameter.detach()) -> Arrays:
    """Converts a model's parameters to float32 arrays by the release's names and in its layouts.

    Args:
        model: Model with a `TransformerCritic`.
        read: Function that gives the tensor of a parameter, such as its gradient, or None to leave it out.

    Raises:
        ValueError: critic or entropy control have parts that the release lacks.
    """
    arrays: Arrays = {}
    for name, parameter, to_release, _ in _entries(model):
        value = read(parameter)
        if value is not None:
            arrays[name] = np.array(to_release(value.detach().float().cpu()).numpy())
    return arrays


def load_release_params(
    model: TQL, source: Path | str | Mapping[str, ArrayLike], *, ignore_temperature: bool = False
) -> None:
    """Sets all parameters of a model to the release's, including target critic and temperatures.

    Args:
        model: Model with a `TransformerCritic` of the arrays' sizes.
        source: npz file of arrays by the release's names, or a mapping to array-likes of real numbers.
        ignore_temperature: Whether to skip the release's temperature for a model without entropy control. The release
            stores an unused one.

    Raises:
        ValueError: the model has parts that the release lacks, the file is no npz file, or an array is missing, left
            over, not finite, or of another type or shape; the message names it. The model is unchanged.
        FileNotFoundError: there is no such file.
    """
    arrays = (
        {name: np.asarray(array) for name, array in source.items()}
        if isinstance(source, Mapping)
        else _read(Path(source))
    )
    if ignore_temperature and model.temperature is None:
        arrays = {name: array for name, array in arrays.items() if not name.startswith(TEMPERATURE)}
    entries = list(_entries(model))
    expected = {name: tuple(to_release(parameter.detach()).shape) for name, parameter, to_release, _ in entries}
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in arrays]
    problems += [f"left over {name} {array.shape}" for name, array in arrays.items() if name not in expected]
    for name, shape in expected.items():
        if name not in arrays:
            continue
        if arrays[name].dtype.kind not in "fiu":
            problems.append(f"{name}: expected real numbers, found {arrays[name].dtype}")
        elif arrays[name].shape != shape:
            problems.append(f"{name}: expected shape {shape}, found {arrays[name].shape}")
        elif not np.isfinite(arrays[name]).all():
            problems.append(f"{name}: expected finite numbers, found NaN or infinity")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"parameters of the release do not fit this model: {'; '.join(problems[:5])}{more}; "
            "build the model with the release's sizes"
            + (", or, without entropy control, set ignore_temperature" if model.temperature is None else "")
        )
    with torch.no_grad():
        for name, parameter, _, from_release in entries:
            from_release(parameter, torch.from_numpy(np.array(arrays[name], dtype=np.float32)))


def save_release_params(model: TQL, path: Path | str) -> None:
    """Writes a model's parameters to an npz file that `load_release_params` reads back exactly.

    The file of a model without entropy control has no temperature, unlike the release's.

    Raises:
        ValueError: see `release_arrays`.
    """
    arrays = release_arrays(model)
    with write_whole(Path(path)) as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(path: Path) -> Arrays:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open_npz(path) as file:
        return {name: file[name] for name in file.files}


Entry = tuple[str, Tensor, Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], object]]


def _entries(model: TQL) -> Iterator[Entry]:
    """Yields (release name, our parameter, ours -> release layout, write release layout into ours)."""
    yield from _critic("critic", model.critic)
    yield from _critic("target_critic", model.target_critic)
    yield from _mlp("actor_bc_flow/mlp", model.policy.behaviour_flow)
    yield from _mlp("actor_onestep_flow/mlp", model.policy.one_step_policy)
    if model.temperature is not None:
        if type(model.temperature) is not AttentionTemperature:
            raise ValueError(
                "entropy_control: expected AttentionTemperature or none, as the release has, "
                f"found {type(model.temperature).__name__}"
            )
        leaf = "log_value" if model.temperature.form == "exp" else "raw"
        yield _plain(f"{TEMPERATURE}{leaf}", model.temperature.raw)


def _critic(prefix: str, critic: Critic) -> Iterator[Entry]:
    if not isinstance(critic, TransformerCritic):
        raise ValueError(f"critic: expected a TransformerCritic, as the release has, found {type(critic).__name__}")
    _require_plain(critic)
    tokenizer = critic.tokenizer
    yield from _linear(f"{prefix}/obs_projection", tokenizer.observation_projection)
    yield from _linear(f"{prefix}/action_projection", tokenizer.action_projection)
    yield _plain(f"{prefix}/cls_token", tokenizer.value_token)
    yield _plain(f"{prefix}/pos_embedding", tokenizer.position)
    if tokenizer.observation_modality is not None and tokenizer.action_modality is not None:
        yield _plain(f"{prefix}/state_type_embed", tokenizer.observation_modality)
        yield _plain(f"{prefix}/action_type_embed", tokenizer.action_modality)
    for index, block in enumerate(critic.transformer.blocks):
        yield from _block(f"{prefix}/transformer_block_{index}", block)
    yield from _norm(f"{prefix}/final_ln", critic.transformer.final_norm)
    heads: Any = critic.heads
    for index, (hidden, _, output) in enumerate(heads):
        yield from _linear(f"{prefix}/q_head_{index}_hidden", hidden)
        yield from _linear(f"{prefix}/q_head_{index}_output", output)


def _require_plain(critic: TransformerCritic) -> None:
    """Refuses parts whose weights the release cannot hold."""
    plain = TransformerCritic(1, 1, hidden_dim=32, num_layers=1)
    known = {type(module) for module in plain.modules()}
    parts: list[object] = [module for module in critic.modules() if type(module) not in known]
    for module in critic.modules():
        if isinstance(module, EntropyAttention):
            parts += [part for part in (module.score_transform, module.weight_transform) if part is not None]
    if critic.bins.centres is not None:
        parts.append(critic.bins)
    if parts:
        found = ", ".join(sorted({type(part).__name__ for part in parts}))
        raise ValueError(f"critic: expected the parts of the release's transformer critic, found {found}")


def _block(prefix: str, block: Any) -> Iterator[Entry]:
    yield from _norm(f"{prefix}/LayerNorm_0", block.attention_norm)
    yield from _norm(f"{prefix}/LayerNorm_1", block.feedforward_norm)
    attention = block.attention
    for part, name in enumerate(("query", "key", "value")):
        yield from _projection(f"{prefix}/{name}", attention.qkv, part, attention.num_heads)
    yield from _linear(f"{prefix}/out", attention.out)
    yield from _linear(f"{prefix}/Dense_0", block.feedforward[0])
    yield from _linear(f"{prefix}/Dense_1", block.feedforward[3])


def _mlp(prefix: str, mlp: MLP) -> Iterator[Entry]:
    for index, layer in enumerate(mlp.linear_layers):
        yield from _linear(f"{prefix}/Dense_{index}", layer)
    for index, norm in enumerate(mlp.norm_layers):
        yield from _norm(f"{prefix}/LayerNorm_{index}", norm)


def _plain(name: str, parameter: Tensor) -> Entry:
    return name, parameter, lambda ours: ours, lambda ours, release: ours.copy_(release)


def _linear(prefix: str, layer: nn.Linear) -> Iterator[Entry]:
    yield f"{prefix}/kernel", layer.weight, lambda ours: ours.T, lambda ours, release: ours.copy_(release.T)
    yield _plain(f"{prefix}/bias", layer.bias)


def _norm(prefix: str, norm: Any) -> Iterator[Entry]:
    yield _plain(f"{prefix}/scale", norm.weight)
    yield _plain(f"{prefix}/bias", norm.bias)


def _projection(prefix: str, qkv: nn.Linear, part: int, num_heads: int) -> Iterator[Entry]:
    """Third ``part`` of the fused projection: rows of (3H, H) <-> the release's (H, h, e)."""
    size = qkv.in_features
    rows = slice(part * size, (part + 1) * size)
    yield (
        f"{prefix}/kernel",
        qkv.weight,
        lambda ours: ours[rows].T.reshape(size, num_heads, -1),
        lambda ours, release: ours[rows].copy_(release.reshape(size, size).T),
    )
    yield (
        f"{prefix}/bias",
        qkv.bias,
        lambda ours: ours[rows].reshape(num_heads, -1),
        lambda ours, release: ours[rows].copy_(release.reshape(size)),
    )
