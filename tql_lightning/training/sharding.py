"""Trains critics that do not fit on one device: shards weights with FSDP2 and gathers them block by block.

``--trainer.strategy=sharded`` is Lightning's ``ModelParallelStrategy`` with torch's ``fully_shard``. Weights, gradients
and the optimizer's state are sharded; checkpoints are whole, as those of any other run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.func import functional_call

from tql_lightning.system.private_api import forget_forward_passes

NAME = "sharded"
TIMEOUT = timedelta(minutes=30)


class ShardedStrategy(ModelParallelStrategy):
    """Shards every network over the processes; ``--trainer.strategy=sharded``.

    A checkpoint is one whole file that any number of processes can continue from, sharded or not. The first process
    holds all of it in main memory while it is written, and every process while it is loaded.

    Args:
        timeout: Time after which a process that waits for another fails.
    """

    def __init__(self, timeout: timedelta = TIMEOUT) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        """Makes all processes one data-parallel group over which the weights are sharded."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # ------------------------------------------------------------------ whole checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True, since the optimizer's state is in the same file."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gathers the whole weights on the first process; empty on the others. Call it on every process."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        weights = {name: _gather(value, self.is_global_zero) for name, value in own.items()}
        return weights if self.is_global_zero else {}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Gathers the optimizer's state on the first process; empty on the others. Call it on every process."""
        own: Any = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = own.state_dict()
        state["state"] = {
            number: {name: _gather(value, self.is_global_zero) for name, value in entries.items()}
            for number, entries in state["state"].items()
        }
        return state if self.is_global_zero else {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Writes one file from the first process, as the base strategy does."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads the file on every process, as the base strategy does.

        Raises:
            ValueError: The path is a folder, as of a distributed checkpoint.
        """
        if Path(checkpoint_path).is_dir():
            raise ValueError(
                f"checkpoint {checkpoint_path}: expected one file, found a folder; distributed checkpoints are not read"
            )
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads this process's shard of whole weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        weights = {name: _share(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(weights, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads this process's shard of the optimizer's whole state."""
        for optimizer, whole in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers = [number for group in whole["param_groups"] for number in group["params"]]
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            like = dict(zip(numbers, parameters, strict=True))
            state = {
                number: {name: _share(value, like[number]) for name, value in entries.items()}
                for number, entries in whole["state"].items()
            }
            optimizer.load_state_dict({**whole, "state": state})


StrategyRegistry.register(NAME, ShardedStrategy, description=ShardedStrategy.__doc__)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards every network of a model; a second call does nothing.

    A network is a child with a forward method, or such a child of a container without one. Each part in a
    ``ModuleList`` (blocks, heads) is gathered while its own forward runs, and the rest while the network's runs.
    Weights cannot be used outside these forwards.

    Args:
        model: Model with the same weights on every process.
        mesh: Device mesh of `ShardedStrategy`.

    Raises:
        ValueError: A parameter is in no module with a forward method.
    """
    if is_sharded(model):
        return
    # FSDP warns of in-place changes to outputs of a module; no module here makes any.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    for child in model.children():
        _shard_child(child, mesh["data_parallel"])


def is_sharded(module: nn.Module) -> bool:
    """Whether weights of a module, or of a part of it, are sharded."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def own_shares(tensors: Iterator[nn.Parameter]) -> list[Tensor]:
    """Returns views of this process's shards; a tensor that is not sharded is returned itself."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """Gathers a tensor that may be sharded. Call it on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def call_with_frozen_parameters(module: nn.Module, *arguments: Tensor) -> Any:
    """Calls a module so that gradients reach its arguments but not its parameters."""
    if not is_sharded(module):
        fixed = {name: parameter.detach() for name, parameter in module.named_parameters()}
        return functional_call(module, fixed, arguments)
    # FSDP's gathered weights would replace those that functional_call passes in.
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        return module(*arguments)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Gathers weights for a block in which processes do different work. Enter it on every process.

    Within the block no forward waits for another process. Modules that are not sharded are left alone.
    """
    parts = [part for module in modules for part in module.modules() if isinstance(part, FSDPModule)]
    with ExitStack() as stack:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.set_reshard_after_backward(False, recurse=False)
            part.unshard()
            stack.callback(_scatter, part)
        yield


def _scatter(part: FSDPModule) -> None:
    part.set_reshard_after_forward(True, recurse=False)
    part.set_reshard_after_backward(True, recurse=False)
    part.reshard()


def _shard_child(module: nn.Module, mesh: DeviceMesh) -> None:
    if not any(True for _ in module.parameters()):
        return
    if not _has_forward(module):
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if own:
            raise ValueError(
                f"trainer.strategy={NAME}: expected weights in modules with a forward, found {own[0]} of "
                f"{type(module).__name__}; use ddp"
            )
        for child in module.children():
            _shard_child(child, mesh)
        return
    lists = [each for each in module.modules() if type(each) is nn.ModuleList]
    for part in [part for each in reversed(lists) for part in each if _has_forward(part)]:
        if any(True for _ in part.parameters()) and not isinstance(part, FSDPModule):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        module.register_forward_hook(_forget)


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _forget(module: nn.Module, *_: Any) -> None:
    """Forward hook of target networks: removes FSDP's records, which only a backward pass would remove."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            forget_forward_passes(part)


def _gather(value: Any, keep: bool) -> Any:
    """Gathers a tensor into main memory where ``keep`` is true, else None; returns other values as they are."""
    if not isinstance(value, Tensor):
        return value
    tensor = whole(value)
    return tensor.detach().cpu() if keep else None


def _share(value: Any, like: Any) -> Any:
    """Shards a whole tensor like ``like``, where that is sharded and of the same shape."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
