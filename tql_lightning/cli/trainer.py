"""What a command gives Lightning's trainer beside the user's settings."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from tql_lightning.callbacks.progress import UpdateProgressBar
from tql_lightning.online.settings import Online
from tql_lightning.run.checkpoint_io import WholeCheckpointIO, base_io
from tql_lightning.system.private_api import given_checkpoint_io


def own_arguments(settings: Any, online: Online | None) -> dict[str, Any]:
    """Returns arguments of the trainer that replace its settings: plugins and, with an online phase, all updates.

    `WholeCheckpointIO` writes checkpoints, unless a configured plugin or strategy does. Inside a wrapper, such as
    ``AsyncCheckpointIO``, it is set here.

    Args:
        settings: Settings of the trainer, with objects made.
        online: Settings of the online phase; None for a command without one.

    Raises:
        ValueError: There is an online phase, and no number of offline updates.
    """
    arguments: dict[str, Any] = {}
    plugins = settings.get("plugins") or []
    plugins = [*plugins] if isinstance(plugins, list | tuple) else [plugins]
    writers: list[Any] = [each for each in plugins if isinstance(each, CheckpointIO)]
    if (own_io := given_checkpoint_io(settings.get("strategy"))) is not None:
        writers.append(own_io)
    base = base_io(writers[0]) if writers else None
    if not writers:
        arguments["plugins"] = [*plugins, WholeCheckpointIO()]
    elif base is None:
        writers[0].checkpoint_io = WholeCheckpointIO()
    elif not isinstance(base, WholeCheckpointIO):
        rank_zero_warn(
            f"trainer: {type(base).__name__} writes checkpoints instead of WholeCheckpointIO: they carry no "
            "checksum, and none is kept for a damaged last one"
        )
    if online is not None and online.updates:
        offline = settings.get("max_steps")
        if offline is None or offline < 0:
            raise ValueError(
                f"trainer.max_steps: expected the number of offline updates before online.steps, found {offline}; "
                "set it, or 0"
            )
        arguments["max_steps"] = offline + online.updates
    return arguments


def keep_latest_callbacks(settings: Any) -> None:
    """Keeps, in place, the last of several callbacks of one class of ours, so that a user's replaces a default one.

    ``--trainer.enable_progress_bar=false`` takes a configuration's bar away.
    """
    callbacks = settings.get("callbacks")
    if not isinstance(callbacks, list):
        return
    kept = {_kind_of(callback): callback for callback in callbacks}  # in the first one's place
    for callback in callbacks:
        if kept[_kind_of(callback)] is not callback:
            name = type(callback).__name__
            rank_zero_info(f"trainer.callbacks: of two {name} the later is used, with its own settings alone")
    hidden = settings.get("enable_progress_bar") is False
    callbacks[:] = [each for each in kept.values() if not (hidden and isinstance(each, UpdateProgressBar))]


def _kind_of(callback: Callback) -> object:
    """Key under which a callback may occur once: the class of ours, the object itself for others."""
    return type(callback) if type(callback).__module__.startswith("tql_lightning.callbacks.") else id(callback)
