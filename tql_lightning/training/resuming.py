"""Chooses the checkpoint that a run continues from, and checks that its settings fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn

from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.run.checkpoint_file import LAST, SUFFIX, CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint
from tql_lightning.system.private_api import begin_anew, last_checkpoints
from tql_lightning.training.hyperparameters import ALGORITHM, class_path, loadable, regrouped

MOST_SHOWN = 5


def find_checkpoint(named: str | None, trainer: Trainer, begins_anew: bool) -> tuple[Path, dict[str, Any]] | None:
    """Path and contents of the checkpoint to use; None for none, or one that Lightning finds.

    Finds "last" itself: Lightning only warns if there is no last checkpoint, and replaces no damaged one.

    Args:
        named: What the user names: a file, "last", or what Lightning knows besides; None or "" for nothing.
        trainer: Trainer whose callbacks write the run's checkpoints.
        begins_anew: Whether "last" may stand for none, in a run that ended before its first checkpoint.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
        ValueError: There is no last checkpoint.
    """
    if not named or named in ("best", "hpc") or "://" in named or Path(named).is_dir():
        return None
    if named != "last":
        return Path(named), read_checkpoint(named, mmap=True)
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    candidates = [path for callback in callbacks for path in last_checkpoints(callback, trainer)]
    kept = {Path(callback.dirpath) for callback in callbacks if callback.dirpath}
    if not candidates:  # a killed run may have only its best checkpoint
        candidates = [folder / LAST for folder in sorted(kept) if any(folder.glob(f"[!.]*{SUFFIX}"))]
    if candidates:
        return newest_whole(candidates)
    if kept and begins_anew:
        return None
    folders = ", ".join(str(callback.dirpath) for callback in callbacks) or "no callback that writes any"
    raise ValueError(
        f"ckpt_path: there is no last checkpoint ({folders}); leave ckpt_path out to start a run, or give "
        "the file or the run's --trainer.default_root_dir"
    )


def newest_whole(last: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    """Reads the checkpoint that a run continues from.

    That is the one with the most updates among its last checkpoints, whatever the clock. If they are damaged, the
    undamaged one with the most updates in the same folder replaces it, provided that it holds the optimizer's state; a
    warning names both.

    Args:
        last: Candidates for the last checkpoint, at least one; missing files are skipped.

    Raises:
        CheckpointError: Every checkpoint is missing or damaged.
    """
    reasons: list[str] = []

    def readable(paths: Iterable[Path]) -> Iterator[tuple[int, Path, dict[str, Any]]]:
        for path in paths:
            try:
                raw = read_checkpoint(path, mmap=True)
                yield int(raw["global_step"]), path, raw
            except CheckpointError as error:
                reasons.append(str(error))

    candidates = [path for path in last if path.is_file()]
    whole = list(readable(candidates))
    if reasons or not candidates:
        reasons = reasons or [f"checkpoint {last[0]}: no such file"]
        others = {path for folder in {path.parent for path in last} for path in folder.glob(f"[!.]*{SUFFIX}")}
        whole += readable(sorted(others - set(candidates)))
        whole = [each for each in whole if "optimizer_states" in each[2]]
    if not whole:
        raise CheckpointError("\n".join([*reasons[:MOST_SHOWN], "no whole checkpoint is left to continue from"]))
    update, path, raw = max(whole, key=lambda each: each[0])
    if reasons:
        rank_zero_warn(f"{reasons[0]}\ncontinuing from {path} instead, at update {update}")
    return path, raw


def refuse_foreign_checkpoint(path: Path, folder: Path, kept: Sequence[Path]) -> None:
    """Rejects a checkpoint from another run, in a folder whose own checkpoints would be overwritten.

    Args:
        path: Path of the checkpoint.
        folder: Folder of the run.
        kept: Folders of the run's checkpoints.

    Raises:
        ValueError: The folder has checkpoints, and this one is not among them.
    """
    own = any(path.resolve().is_relative_to(each.resolve()) for each in (folder, *kept))
    there = sorted(each for below in kept for each in below.glob(f"[!.]*{SUFFIX}"))
    if there and not own:
        raise ValueError(
            f"trainer.default_root_dir: {folder} holds a run with checkpoints of its own, such as {there[0]}, found "
            f"{path} to continue from; continue that run with --ckpt_path=last, or choose another folder with "
            "--trainer.default_root_dir"
        )


def refuse_other_algorithm(path: Path | str, raw: Mapping[str, Any], own: type) -> None:
    """Rejects a checkpoint of another algorithm; one of an earlier version names none.

    Raises:
        CheckpointError: The checkpoint names another class than ``own``.
    """
    named = raw.get(ALGORITHM)
    if named is not None and named != class_path(own):
        raise CheckpointError(
            f"checkpoint {path}: expected one of {class_path(own)}, found one of {named!s:.80}; "
            f"add --model={named!s:.80}"
        )


def begin_without_exceptions(trainer: Trainer) -> None:
    """Begins a new run at update 0, and does not let it overwrite what another one left at an exception.

    Raises:
        ValueError: There is such a checkpoint.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, OnExceptionCheckpoint):
            if Path(callback.ckpt_path).exists():
                raise ValueError(
                    f"OnExceptionCheckpoint: expected no {callback.ckpt_path}, which an earlier run left at an "
                    f"exception, found it; continue that run with --ckpt_path={callback.ckpt_path}, or remove it"
                )
            begin_anew(trainer)


def refuse_changes(path: Path, raw: Mapping[str, Any], model: LightningModule, data: OfflineDataModule) -> None:
    """Rejects another algorithm, and changes of settings that the weights or minibatches depend on.

    These are the model's ``fixed_settings`` and the data's ``stream_settings``. Other settings may change between two
    parts of a run, such as learning rates and the weights of losses. A setting that one side lacks is not compared, as
    checkpoints of earlier versions lack some.

    Args:
        path: Path of the checkpoint.
        raw: Contents of the checkpoint.
        model: Model to continue with.
        data: Data to continue with.

    Raises:
        ValueError: Settings differ; the message shows both values of each.
    """
    now = loadable(dict(model.hparams), type(model))
    before = regrouped(raw.get("hyper_parameters", {}), type(model))
    changes = [
        change
        for name in getattr(model, "fixed_settings", ())
        if name in before and name in now
        for change in _differences(f"model.{name}", before[name], now[name])
    ]
    was, is_now = raw.get(ALGORITHM), class_path(type(model))
    changes += [("model", was, is_now)] if was is not None and was != is_now else []
    saved = raw.get("OfflineDataModule", {})
    changes += _differences("data", saved.get("stream", {}), data.stream_settings)
    if data.experience is not None:
        changes += _differences("online", saved.get("online", {}).get("settings", {}), data.experience.fixed_settings)
    if changes:
        shown = [f"{name}: {was} in the checkpoint, {new} now" for name, was, new in changes[:MOST_SHOWN]]
        more = [f"and {len(changes) - MOST_SHOWN} more"] if len(changes) > MOST_SHOWN else []
        remedy = "give the checkpoint's, start a new run in another folder, or add --force=true"
        raise ValueError(
            "\n".join([f"checkpoint {path}: made by other settings than this run's", *shown, *more, remedy])
        )


def _differences(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        if ("class_path" in before) != ("class_path" in now):  # the command line writes settings alone
            before, now = (each.get("init_args", each) for each in (before, now))
        shared = [key for key in before if key in now]
        if "class_path" in shared and before["class_path"] != now["class_path"]:
            shared = ["class_path"]
        for key in shared:
            yield from _differences(f"{name}.{key}", before[key], now[key])
    elif _plain(before) != _plain(now):
        yield name, _short(before), _short(now)


def _short(value: Any) -> Any:
    """Returns the class path of a part of a model, and any other value as it is."""
    return value.get("class_path", value) if isinstance(value, Mapping) else value


def _plain(value: Any) -> Any:
    """Turns tuples into lists, recursively."""
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
