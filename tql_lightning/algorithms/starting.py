"""Starts a new run from the weights of another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.run.checkpoint_file import CheckpointError, last_of
from tql_lightning.training.algorithm import Algorithm

MOST_SHOWN = 5


def load_weights(
    model: Algorithm, path: Path | str, parts: Sequence[str] | None = None, with_optimizer: bool = False
) -> None:
    """Loads a checkpoint's weights into a new model, which then starts at update 0.

    The checkpoint passes the checks of every other load; see `load_checkpoint`. The two algorithms may differ, as long
    as the loaded tensors have the same names and shapes.

    Args:
        model: Model of the new run, before it is trained.
        path: Checkpoint, or the folder of a run, whose last checkpoint is taken.
        parts: Networks to load by name, such as "policy" or "critic.transformer"; None for all. The others keep their
            initial weights.
        with_optimizer: Whether the optimizer's moments are kept, too.

    Raises:
        CheckpointError: The checkpoint fails a check, lacks a part, or has tensors of other names or shapes.
        ValueError: ``with_optimizer`` is set together with ``parts``, or ``parts`` is empty.
    """
    if with_optimizer and parts is not None:
        raise ValueError(
            "weights_optimizer: expected false with weights_parts, since the optimizer's state belongs to all "
            "networks, found true; leave one of the two out"
        )
    if parts is not None and not parts:
        raise ValueError("weights_parts: expected one or more names such as [policy], found none; leave it out for all")
    file = last_of(Path(path))
    source, raw = load_checkpoint(file, plays=False)
    given, own = source.state_dict(), model.state_dict()
    if parts is not None:
        _require_parts(file, parts, given, own)
        given, own = ({n: t for n, t in each.items() if _is_in(n, parts)} for each in (given, own))
    _require_equal_shapes(file, given, own)
    model.load_state_dict(given, strict=False)
    _warn_of_other_scales(file, source, model, given.keys())
    if with_optimizer:
        states = raw.get("optimizer_states")
        if not states:
            raise CheckpointError(
                f"checkpoint {file}: holds no optimizer's state, such as a best checkpoint; use the run's last one, or "
                "leave weights_optimizer out"
            )
        model.start_with_optimizer(states[0])
    what = "all networks" if parts is None else ", ".join(parts)
    rank_zero_info(f"weights of {what} from {file}, after {int(raw['global_step']):,} updates")


def _is_in(name: str, parts: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def _require_parts(file: Path, parts: Sequence[str], given: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    for part in parts:
        for where, tensors in ((f"checkpoint {file}", given), ("this run's model", own)):
            if not any(_is_in(name, [part]) for name in tensors):
                known = ", ".join(sorted({name.partition(".")[0] for name in tensors}))
                raise CheckpointError(f"weights_parts: expected parts of {where}, which are {known}, found {part}")


def _require_equal_shapes(file: Path, given: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Rejects tensors of other names or shapes; the message shows both shapes of each."""
    names = [*own, *(name for name in given if name not in own)]
    wrong = [name for name in names if _shape(given, name) != _shape(own, name)]
    if wrong:
        shown = [f"{name}: {_shape(given, name)} there, {_shape(own, name)} here" for name in wrong[:MOST_SHOWN]]
        more = [f"and {len(wrong) - MOST_SHOWN} more"] if len(wrong) > MOST_SHOWN else []
        remedy = "train on data of the same sizes with the same networks, or name the parts that fit with weights_parts"
        raise CheckpointError(
            "\n".join([f"checkpoint {file}: its weights do not fit this run's networks", *shown, *more, remedy])
        )


def _shape(tensors: dict[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "nothing"


def _warn_of_other_scales(file: Path, source: Algorithm, model: Algorithm, loaded: Any) -> None:
    """Warns of buffers that a checkpoint does not hold and that give weights their meaning, such as bins of values."""
    own, parts = dict(model.named_buffers()), {name.partition(".")[0] for name in loaded}
    differing = [
        name
        for name, buffer in source.named_buffers()
        if name not in loaded and name in own and not torch.equal(buffer, own[name])
        if name.partition(".")[0] in parts
    ]
    if differing:
        rank_zero_warn(
            f"checkpoint {file}: {', '.join(differing)} differ from this run's, because they follow from settings, or "
            "from the range of the data's rewards or actions; what the loaded weights stand for may have changed"
        )
