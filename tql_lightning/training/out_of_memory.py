"""Explains out-of-memory errors: what used the memory, and which settings need less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

LONGEST_REASON = 200  # characters of an allocator's message
SIGNS = (  # in messages of allocators that raise a RuntimeError
    *("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
)


class TooLittleMemoryError(MemoryError):
    """An update needs more memory than there is; the message names sizes and remedies."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error comes from an allocator: CUDA's, torch's on the CPU, Python's or NumPy's."""
    if isinstance(error, RuntimeError):
        return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)
    return isinstance(error, MemoryError)


@contextmanager
def explained_memory(
    model: nn.Module, batch_size: int, device: torch.device, cuda_graphs: bool = False
) -> Iterator[None]:
    """Turns an allocator's error in the block into a `TooLittleMemoryError`.

    Args:
        model: Algorithm to train; its ``critic``, if any, gives tokens and sizes for the message.
        batch_size: Number of transitions per update in this process.
        device: Device of the update.
        cuda_graphs: Whether updates are recorded.

    Raises:
        TooLittleMemoryError: An allocator failed.
    """
    try:
        yield
    except TooLittleMemoryError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        critic = getattr(model, "critic", None)
        named = {"tokens": getattr(critic, "num_tokens", 0), "hidden size": getattr(critic, "hidden_dim", 0)}
        sizes = [f"batch {batch_size:,} (of this process)"]
        sizes += [f"{named['tokens']} tokens"] if named["tokens"] else []
        sizes += [f"hidden size {named['hidden size']}"] if named["hidden size"] else []
        counted, whose = (model, "model") if critic is None else (critic, "critic")
        count = sum(parameter.numel() for parameter in counted.parameters()) / 1e6
        sizes.append(f"{count:.1f} M parameters in the {whose}")
        what = f"{device} is out of memory with {', '.join(sizes)}"
        remedies = remedies_for(device, getattr(critic, "num_layers", 0) > 0, cuda_graphs)
        raise TooLittleMemoryError(advice(error, what, remedies)) from error


def remedies_for(device: torch.device, attends: bool = True, cuda_graphs: bool = False) -> list[str]:
    """Lists settings that need less memory, one line per effect on the results.

    Args:
        device: Device of the update. On a CPU, more processes or another storage do not help.
        attends: Whether the critic is a transformer.
        cuda_graphs: Whether updates are recorded.
    """
    exact, near = [], ["--trainer.precision=bf16-mixed"]
    if device.type != "cpu":
        exact += ["more devices (each takes its share of the batch)", "--data.storage=cpu"]
    if cuda_graphs:
        exact.append("--model.execution.cuda_graphs=false")
    if attends:
        near.append("attention with implementation chunked (docs/attention.md)")
    sizes = "hidden_dim or num_layers" if attends else "hidden_dims"
    numbers = "numbers (tokens)" if attends else "numbers"
    return [
        *([f"the same results with less: {', '.join(exact)}"] if exact else []),
        f"nearly the same: {', '.join(near)}",
        f"others: lower --data.batch_size, --model.critic.{sizes}, or observe fewer {numbers}",
    ]


def advice(error: BaseException, what: str, remedies: Sequence[str]) -> str:
    """Composes the message of an out-of-memory error.

    Args:
        error: The allocator's error.
        what: First line of the message.
        remedies: Result of `remedies_for`.
    """
    reason = (str(error).splitlines() or [type(error).__name__])[0][:LONGEST_REASON]
    return "\n".join([what, reason, *remedies])
