"""Which parameters weight decay applies to."""

from __future__ import annotations

from torch import nn


def is_decaying_matrix(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices and blocks of matrices that their layer does not exempt.

    Args:
        module: Network of the parameter.
        name: Name of the parameter in ``module.named_parameters()``. A layer exempts its own parameters by listing
            their names in its attribute ``without_decay``.
        parameter: Parameter with this name.
    """
    owner, _, own_name = name.rpartition(".")
    exempt: frozenset[str] = getattr(module.get_submodule(owner), "without_decay", frozenset())
    return parameter.ndim > 1 and own_name not in exempt
