"""Collective operations of processes that train one model, each on an equal part of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.system.private_api import ddp_settings, restart_static_graph

# Parts of gloo's and NCCL's messages when another process has ended.
PEER_LOST_MESSAGES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exit")
REDUCTIONS: dict[str | None, Callable[..., Tensor]] = {None: torch.mean, "min": torch.min, "max": torch.max}


def extreme_of(metric: str) -> str | None:
    """Returns "min" or "max" for a metric whose name ends so, such as "q_min"; None for one that is averaged."""
    ending = metric.rpartition("_")[2]
    return ending if ending in ("min", "max") else None


def identity(mean: Tensor) -> Tensor:
    """Identity: the mean over this process's rows."""
    return mean


def mean_over_processes(mean: Tensor) -> Tensor:
    """Averages each process's mean to that of the whole batch. Call it on every process.

    Args:
        mean: Mean over this process's rows; any shape, the same on every process.

    Returns:
        A tensor of the same shape without gradient; ``mean`` itself if one process trains.
    """
    return sum_over_processes(mean) / dist.get_world_size() if _are_several() else mean


def sum_over_processes(value: Tensor) -> Tensor:
    """Sums tensors of the same shape over processes. Call it on every process."""
    if not _are_several():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def largest_over_processes(number: int, device: torch.device) -> int:
    """Returns the largest of the processes' numbers. Call it on every process.

    Args:
        number: Number of this process.
        device: Device of this process.
    """
    if not _are_several():
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def gather_objects(own: Any) -> list[Any]:
    """Returns every process's object, in the order of their ranks. Call it on every process."""
    if not _are_several():
        return [own]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, own)
    return everyones


def agree_to_stop(trainer: Any) -> None:
    """Stops training on every process if one is to stop; otherwise the others would deadlock."""
    if trainer.world_size > 1 and largest_over_processes(int(trainer.should_stop), trainer.strategy.root_device):
        trainer.should_stop = True


def over_processes(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Combines each process's metrics to those of the whole batch. Call it on every process.

    Args:
        metrics: Scalars by name, the same names on every process.

    Returns:
        Numbers by name: means over the processes, or their extremes where `extreme_of` says so.
    """
    if not metrics:
        return {}
    own = torch.stack([at_least_float32(value) for value in metrics.values()])
    everyones = [own]
    if _are_several():
        everyones = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, own)
    columns = torch.stack(everyones, dim=1).cpu()
    return {name: REDUCTIONS[extreme_of(name)](column).item() for name, column in zip(metrics, columns, strict=True)}


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized()


def has_lost_another(error: BaseException) -> bool:
    """Whether an error says that another process ended while this one waited for it."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in PEER_LOST_MESSAGES)


def prefer_static_graph(strategy: object) -> None:
    """Sets DDP's ``static_graph``, since every update has the same graph; DDP then need not search unused parameters.

    A strategy with ``static_graph`` or ``find_unused_parameters`` keeps its setting.

    Args:
        strategy: Strategy of a trainer, before it wraps the model.
    """
    if not isinstance(strategy, DDPStrategy):
        return
    settings = ddp_settings(strategy)
    if not settings.get("find_unused_parameters"):
        settings.setdefault("static_graph", True)
    # Manual optimisation needs the first all-reduce of every fit, and Lightning starts only that of the first fit.
    restart_static_graph(strategy)
