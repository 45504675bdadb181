"""What processes that train together share: one batch, of which each has an equal part, and one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.system.private_api import ddp_settings, restart_static_graph

# What gloo and NCCL say where another process is gone.
PEER_LOST_MESSAGES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exit")
# How a metric of each process's part becomes that of the whole batch, where it is not by the mean.
EXTREMES: dict[str, Callable[..., Tensor]] = {"q_min": torch.min, "q_max": torch.max}


def identity(mean: Tensor) -> Tensor:
    """A mean over rows as it is: of all the rows there are, or of those that alone are meant."""
    return mean


def mean_over_processes(mean: Tensor) -> Tensor:
    """The mean over the whole batch from the mean over each process's part of it; called by all of them at once.

    Args:
        mean: of this process's part; any shape, the same on every process.

    Returns:
        The same shape, without gradient; ``mean`` itself where one process trains.
    """
    return sum_over_processes(mean) / dist.get_world_size() if _are_several() else mean


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of what each process has; any shape, the same on every one; called by all of them at once."""
    if not _are_several():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def largest_over_processes(number: int, device: torch.device) -> int:
    """The largest of the numbers that each process has; called by all of them at once.

    Args:
        number: this process's.
        device: that it trains on.
    """
    if not _are_several():
        return number
    largest = torch.tensor(number, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def agree_to_stop(trainer: Any) -> None:
    """Stops training on every process where one is to stop; the others would wait for it for ever."""
    if trainer.world_size > 1 and largest_over_processes(int(trainer.should_stop), trainer.strategy.root_device):
        trainer.should_stop = True


def over_processes(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics of the whole batch from those of each process's part of it; called by all of them at once.

    Args:
        metrics: scalars by name, the same names on every process.

    Returns:
        Numbers by name: means over the processes, or what `EXTREMES` says.
    """
    if not metrics:
        return {}
    own = torch.stack([at_least_float32(value) for value in metrics.values()])
    everyones = [own]
    if _are_several():
        everyones = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, own)
    columns = torch.stack(everyones, dim=1).cpu()
    return {name: EXTREMES.get(name, torch.mean)(column).item() for name, column in zip(metrics, columns, strict=True)}


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized()


def has_lost_another(error: BaseException) -> bool:
    """Whether an error comes of another process that has ended while this one waited for it."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in PEER_LOST_MESSAGES)


def prefer_static_graph(strategy: object) -> None:
    """Lets DDP take every update for the same graph, which it is: no update searches for parameters it left out.

    A strategy for which ``static_graph`` or ``find_unused_parameters`` is set keeps what is set.

    Args:
        strategy: of a trainer, before it wraps its model.
    """
    if not isinstance(strategy, DDPStrategy):
        return
    settings = ddp_settings(strategy)
    if not settings.get("find_unused_parameters"):
        settings.setdefault("static_graph", True)
    # Manual optimisation needs the first all-reduce of every fit, and Lightning starts only that of the first fit.
    restart_static_graph(strategy)
