"""Which parameters weight decay applies to."""

from __future__ import annotations

from torch import nn


def is_decaying_matrix(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices and blocks of matrices that their layer does not exempt.

    Args:
        module: network that the parameter belongs to.
        name: name of the parameter in ``module.named_parameters()``. A layer exempts its own parameters by their names
            in its attribute ``without_decay``.
        parameter: the parameter itself.
    """
    owner, _, own_name = name.rpartition(".")
    exempt: frozenset[str] = getattr(module.get_submodule(owner), "without_decay", frozenset())
    return parameter.ndim > 1 and own_name not in exempt
