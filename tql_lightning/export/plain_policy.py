"""Policies that this package can build again from plain numbers: what the format "torch" holds."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from tql_lightning.export.comparison import ExportError
from tql_lightning.nn.critic import MLPCritic, TransformerCritic
from tql_lightning.nn.policy import Actor, FlowPolicy
from tql_lightning.nn.policy_extraction import FlowActor
from tql_lightning.nn.scaled_policy import ScaledPolicy
from tql_lightning.training.algorithm import Algorithm


def plain_policy(
    model: Algorithm, actor: Actor, settings: Mapping[str, Any], low: list[float], high: list[float]
) -> tuple[ScaledPolicy, dict[str, Any]]:
    """The network whose weights are saved, and the plain numbers that `policy.build` makes it from.

    Args:
        model: Algorithm that acts.
        actor: How it acts.
        settings: The model's settings, as its checkpoint has them.
        low: Lower bounds of the actions.
        high: Upper bounds of the actions.

    Raises:
        ExportError: The actor or its networks are of other classes, or have parts that plain numbers do not describe.
    """
    if not isinstance(actor, FlowActor):
        raise ExportError(
            "format torch: expected an actor that tql_lightning.nn.policy_extraction.flow_actor made, found another "
            f"one of {type(model).__name__}; use --format onnx"
        )
    network = ScaledPolicy(actor.policy, actor.critic, actor.extraction, low, high).eval()
    architecture: dict[str, Any] = {"policy": _plain_arguments(actor.policy, (FlowPolicy,), model, settings)}
    architecture["critic"] = None
    if actor.critic is not None:
        arguments = _plain_arguments(actor.critic, (TransformerCritic, MLPCritic), model, settings)
        assert isinstance(actor.critic, TransformerCritic | MLPCritic)
        centres = actor.critic.bins.centres
        arguments["support"] = None if centres is None else centres.tolist()
        architecture["critic"] = {"class": type(actor.critic).__name__, "arguments": arguments}
    return network, architecture


def _plain_arguments(
    module: nn.Module, known: tuple[type[nn.Module], ...], model: Algorithm, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of a network without its sizes, from the setting of the model that it was made by."""
    kind = type(module)
    setting = next((name for name in settings if getattr(model, name, None) is module), "")
    described = settings.get(setting)
    if kind not in known or not isinstance(described, Mapping):
        raise ExportError(f"format torch: holds a plain {known[0].__name__}, found {kind.__name__}; use --format onnx")
    arguments, parts = {}, []
    for argument, value in described.get("init_args", {}).items():
        if isinstance(value, Mapping):
            default = inspect.signature(kind).parameters[argument].default
            parts += [] if _is_default(value, default) else [argument]
        elif argument not in ("observation_dim", "action_dim"):
            arguments[argument] = value
    if parts or not _is_json(arguments):
        raise ExportError(
            f"format torch: holds a plain {kind.__name__}, and model.{setting} has parts of its own "
            f"({', '.join(parts) or 'arguments'}); use --format onnx"
        )
    return arguments


def _is_default(value: Any, default: Any) -> bool:
    """Whether a part's class path and arguments are those that a class's default has."""
    if not isinstance(value, Mapping) or not isinstance(default, type):
        return bool(value == default)
    parameters = inspect.signature(default).parameters
    return str(value.get("class_path", "")).rpartition(".")[2] == default.__name__ and all(
        name in parameters and _is_default(argument, parameters[name].default)
        for name, argument in value.get("init_args", {}).items()
    )


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
