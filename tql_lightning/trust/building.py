"""A limit on what is built from numbers that a file gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as registration

SPARE_TENSORS = 1_000  # buffers that are not saved
SPARE_ELEMENTS = 1 << 22
MODULES_PER_TENSOR = 20  # activations, containers


@contextmanager
def building_no_more_than(weights: Iterable[Tensor]) -> Iterator[None]:
    """Refuses to build networks that are clearly larger than the weights that they are to take over.

    Without it a file of some kilobytes could name a million layers. Build on the device "meta" first, within it: then
    nothing is allocated before it is counted.

    Args:
        weights: what the networks will hold.

    Raises:
        ValueError: a network has more tensors, numbers or modules than such weights account for.
    """
    sizes = [weight.numel() for weight in weights]
    left = {
        "tensors": 2 * len(sizes) + SPARE_TENSORS,
        "numbers": 2 * sum(sizes) + SPARE_ELEMENTS,
        "modules": MODULES_PER_TENSOR * len(sizes) + SPARE_TENSORS,
    }

    def refuse() -> None:
        for what, rest in left.items():
            if rest < 0:
                raise ValueError(f"its settings make a network of more {what} than its weights have")

    def take(what: str, count: int) -> None:
        left[what] -= count
        refuse()

    def tensor_made(_: nn.Module, __: str, tensor: Any) -> None:
        if isinstance(tensor, Tensor):
            take("tensors", 1)
            take("numbers", tensor.numel())

    def module_made(_: nn.Module, __: str, ___: Any) -> None:
        take("modules", 1)

    with ExitStack() as hooks:
        for register, hook in (
            (registration.register_module_parameter_registration_hook, tensor_made),
            (registration.register_module_buffer_registration_hook, tensor_made),
            (registration.register_module_module_registration_hook, module_made),
        ):
            hooks.callback(register(hook).remove)
        yield
        refuse()  # also where the first error was passed over
