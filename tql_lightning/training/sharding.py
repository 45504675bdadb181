"""Critics beyond one device: every process holds a share of each weight and gathers a block's weights to use them.

Lightning's ``ModelParallelStrategy`` with torch's ``fully_shard`` (FSDP2), as ``--trainer.strategy=sharded``. Weights,
gradients and the optimizer's state are shares; checkpoints are whole and those of any other run.
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
    """Every process holds a share of each network; ``--trainer.strategy=sharded``.

    A checkpoint is one whole file, written by `WholeCheckpointIO` like that of any run: it can be continued by any
    number of processes, sharded or not. The first process holds all of it in main memory while it is written, every
    process while it is loaded, which each reads from the file itself.

    Args:
        timeout: after which a process that waits for another gives up.
    """

    def __init__(self, timeout: timedelta = TIMEOUT) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        """Lightning's; all processes together share the data and the weights."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # ------------------------------------------------------------------ whole checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: the optimizer's state is a part of the one file."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights on the first process, an empty dict on the others; called on all of them."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        weights = {name: _gather(value, self.is_global_zero) for name, value in own.items()}
        return weights if self.is_global_zero else {}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's whole state on the first process, an empty dict on the others; called on all of them."""
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
        """Any strategy's: the first process writes one file."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Any strategy's: each process reads the file, with all its checks.

        Raises:
            ValueError: it is a folder, of a distributed checkpoint.
        """
        if Path(checkpoint_path).is_dir():
            raise ValueError(
                f"checkpoint {checkpoint_path}: expected one file, found a folder; distributed checkpoints are not read"
            )
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes over this process's share of whole weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        weights = {name: _share(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(weights, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes over this process's share of the optimizer's whole state."""
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
    """Leaves this process its share of every network of a model; does nothing a second time.

    A network is a child that has a forward, or such a child of one that has none. Each part that it holds in a
    ``ModuleList`` (blocks, heads) is gathered for itself while its forward runs, the rest of it while the network's
    does; elsewhere weights cannot be used.

    Args:
        model: the same on every process.
        mesh: of `ShardedStrategy`.

    Raises:
        ValueError: weights are in no module with a forward.
    """
    if any(is_sharded(module) for module in model.modules()):
        return
    # Only what is done in place to such an output would be wrong, and nothing is.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    for child in model.children():
        _shard_child(child, mesh["data_parallel"])


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are shares."""
    return isinstance(module, FSDPModule)


def own_shares(tensors: Iterator[nn.Parameter]) -> list[Tensor]:
    """Of each tensor this process's share, in the same memory; the tensor itself where it is whole."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be in shares, on every process; called on all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def call_with_frozen_parameters(module: nn.Module, *arguments: Tensor) -> Any:
    """What a module gives, whose gradient reaches the arguments and not the module's parameters."""
    if not is_sharded(module):
        fixed = {name: parameter.detach() for name, parameter in module.named_parameters()}
        return functional_call(module, fixed, arguments)
    # Weights that are gathered take the place of those that it would be called with.
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
    """Whole weights on every process, for work that is not the same on each; called on all of them.

    Within, nothing waits for another process. Without effect on modules that are whole.
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
        if any(True for _ in part.parameters()) and not is_sharded(part):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        module.register_forward_hook(_forget)


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _forget(module: nn.Module, *_: Any) -> None:
    """Drops what torch notes at forward passes for backward passes, and only these drop: a target has none."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            forget_forward_passes(part)


def _gather(value: Any, keep: bool) -> Any:
    """What a checkpoint holds of a value: a whole tensor in main memory, on a process that is to keep it."""
    if not isinstance(value, Tensor):
        return value
    tensor = whole(value)
    return tensor.detach().cpu() if keep else None


def _share(value: Any, like: Any) -> Any:
    """This process's share of a whole tensor, where ``like`` is in shares and of its shape."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
