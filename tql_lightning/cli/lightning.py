"""Lightning's CLI for offline algorithms: fit, validate and test."""

from __future__ import annotations

import signal
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tql_lightning import callbacks as own_callbacks
from tql_lightning.algorithms.loading import check_contents
from tql_lightning.algorithms.starting import load_weights
from tql_lightning.cli.close_names import add_note, option_names
from tql_lightning.cli.help import DESCRIPTION, SUMMARIES
from tql_lightning.cli.model import ModelParser, chosen_model, without_model
from tql_lightning.cli.parsers import Command, add_group, command_parser
from tql_lightning.cli.private_api import actions, subcommand_choices
from tql_lightning.cli.saved_config import SaveFitConfig
from tql_lightning.cli.start_checks import refuse_earlier_run
from tql_lightning.cli.trainer import keep_latest_callbacks, own_arguments
from tql_lightning.data.datamodule import OfflineDataModule
from tql_lightning.data.sampler import rows_per_process
from tql_lightning.online.collector import Collector
from tql_lightning.online.settings import Online
from tql_lightning.run.checkpoint_file import CheckpointError
from tql_lightning.run.checkpoint_io import read_checkpoint
from tql_lightning.run.folder import CONFIG_FILE, writes_nothing
from tql_lightning.run.lock import only_run_in
from tql_lightning.run.superseded import has_begun
from tql_lightning.system.private_api import begin_anew, restores_checkpoint
from tql_lightning.training.contents import LONGEST_REASON, checked_settings
from tql_lightning.training.out_of_memory import explained_memory
from tql_lightning.training.resuming import (
    find_checkpoint,
    refuse_changes,
    refuse_foreign_checkpoint,
    refuse_other_algorithm,
)
from tql_lightning.training.trainer_checks import refuse_launch
from tql_lightning.trust.text import FileError

UNFIT = (ValueError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError)  # of a misfit checkpoint


class TQLCLI(LightningCLI):
    """Lightning's CLI for the chosen algorithm and offline data; see `cli.main`.

    Args:
        arguments: Command line as the user typed it, which the run records.
        help_group: Group of settings that the help shows; "" for those that a user sets first.
        commands: Our own commands, for the help; `cli.main` runs them.
        groups: A line of help for each group among them.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        help_group: str = "",
        commands: Mapping[str, Command | dict[str, Command]] | None = None,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        self._commands, self._groups = commands or {}, groups or {}
        for name in own_callbacks.__all__:  # the parser knows classes by their names once they are imported
            getattr(own_callbacks, name)
        # Defaults of Lightning's callbacks: of Timer, where a str is expected, and of StochasticWeightAveraging.
        yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))
        yaml.SafeDumper.add_representer(torch.device, lambda dumper, device: dumper.represent_data(str(device)))
        # References such as ${trainer.max_steps} are resolved after overrides, and across files.
        jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        parser = {"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False}
        own = {name: parser | {"description": SUMMARIES[name]} for name in self.subcommands()}
        self._help_group = help_group
        super().__init__(
            chosen_model(sys.argv[1:]),
            OfflineDataModule,
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"save_to_log_dir": False, "arguments": list(arguments)},
            parser_kwargs={**parser, "description": DESCRIPTION, **own},
            parser_class=ModelParser,
            auto_configure_optimizers=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands but for predict, with the arguments to leave out of each."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Adds our own commands to the help."""
        super()._add_subcommands(parser, **kwargs)
        (action,) = (action for action in actions(parser) if hasattr(action, "add_subcommand"))
        for choice in subcommand_choices(action):
            choice.help = SUMMARIES[choice.dest]
        for name, command in self._commands.items():
            below = command_parser(name, command, self._groups.get(name), whole=False)
            action.add_subcommand(name, below, help=below.description)
            if isinstance(command, dict):
                add_group(below, name, command)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ARG002
        """Parses the command line; an error about an unknown name suggests close ones."""
        try:
            # sys.argv itself keeps --model, because DDP starts its other processes with it.
            self.config = parser.parse_args(without_model(sys.argv[1:]))
        except ArgumentError as error:
            parsers = self._subcommand_parsers.values()
            options = {name: kinds for each in parsers for name, kinds in option_names(each).items()}
            add_note(error, options, sys.argv[1:])
            raise

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links the model's settings to the data's."""
        assert isinstance(parser, ModelParser)
        assert isinstance(self._model_class, type)
        parser.use_model(self._model_class)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Adds to fit what only it takes, and says what the help shows."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        assert isinstance(parser, ModelParser)
        parser.shown = subcommand, self._help_group
        if subcommand == "fit":
            parser.add_argument(
                "--force",
                type=bool,
                default=False,
                help="Continue a run even if settings changed that its weights or minibatches depend on.",
            )
            parser.add_class_arguments(Online, "online")
            parser.add_argument(
                "--weights",
                type=str | None,
                default=None,
                help="Checkpoint, or folder of a run, whose weights a new run starts from, at update 0.",
            )
            parser.add_argument(
                "--weights_optimizer", type=bool, default=False, help="Start with that run's optimizer state, too."
            )
            parser.add_argument(
                "--weights_parts",
                type=list[str] | None,
                default=None,
                help="Networks to take from --weights, such as [policy] or [critic,target_critic]; default: all.",
            )
        return parser

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with `WholeCheckpointIO`, unless a configured plugin or strategy writes checkpoints.

        Raises:
            MisconfigurationException: The settings allow no trainer; a note lists them.
            ValueError: See `trainer.own_arguments` and `trainer_checks.refuse_launch`.
        """
        trainer_config = self._get(self.config_init, "trainer", default={})
        kwargs |= own_arguments(trainer_config, self._get(self.config_init, "online"))
        keep_latest_callbacks(trainer_config)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            settings = ("accelerator", "devices", "num_nodes", "strategy", "precision")
            given = ", ".join(f"trainer.{name}={trainer_config.get(name)}" for name in settings)
            error.add_note(
                f"raised by Lightning for {given}; --trainer.accelerator=cpu --trainer.devices=1 runs anywhere"
            )
            raise
        refuse_launch(trainer)
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Merges the checkpoint's model settings into the configuration, except for fit, which keeps its own.

        Replaces Lightning's method, which would read the file again after it was checked.

        Raises:
            CheckpointError: The checkpoint fails a check, or holds another algorithm; nothing of it was imported.
        """
        subcommand = self.config["subcommand"]
        path = None if subcommand == "fit" else self.config[subcommand].get("ckpt_path")
        if path and Path(path).is_file():
            raw = read_checkpoint(path)
            assert isinstance(self._model_class, type)
            refuse_other_algorithm(path, raw, self._model_class)
            check_contents(path, raw, plays=False)
            self.config = self.parser.parse_object({subcommand: {"model": checked_settings(raw)}}, self.config)

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the subcommand while rank 0 holds the lock of the run's folder.

        Raises:
            RunLockedError: Another run uses the folder.
            CheckpointError: The checkpoint's weights or states are not this run's.
            TooLittleMemoryError: Memory did not suffice.
            KeyboardInterrupt: Ctrl-C outside training, or a second time.
            SystemExit: SIGTERM outside training; the code is 143.
        """
        folder = self.trainer.default_root_dir
        writes = (subcommand == "fit" or bool(self.trainer.loggers)) and not writes_nothing(self.trainer)
        alone = writes and self.trainer.is_global_zero and "://" not in folder
        batch_size = self.datamodule.batch_size // self.trainer.world_size
        device = self.trainer.strategy.root_device
        memory = explained_memory(self.model, batch_size, device, self.model.execution.cuda_graphs)
        try:
            with memory, only_run_in(Path(folder)) if alone else nullcontext():
                super()._run_subcommand(subcommand)
        except UNFIT as error:
            if isinstance(error, FileError) or not raised_while_restoring(error):
                raise
            path = self._get(self.config, "ckpt_path")
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}"
            raise CheckpointError(f"checkpoint {path}: does not fit this run ({reason})") from error
        except SystemExit as error:  # Lightning exits with a code that does not name the signal
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            if isinstance(error, SIGTERMException):
                error.code = 128 + signal.SIGTERM
            raise

    def before_fit(self) -> None:
        """Checks trainer, checkpoint and folder before training starts.

        Raises:
            ValueError: The folder holds another run, the checkpoint comes from another folder or was made with other
                settings, the batch cannot be divided over the processes, or the trainer cannot train the model.
            CheckpointError: The checkpoint is missing, damaged, or of another algorithm.
        """
        online = self._get(self.config_init, "online")
        if online.updates:
            self.datamodule.go_online(Collector(online))
        rows_per_process(self.datamodule.batch_size, self.trainer.world_size)
        self.model.check_trainer(self.trainer)
        found = self._find_checkpoint()
        if found is not None and not self._get(self.config, "force"):
            refuse_other_algorithm(*found, type(self.model))
            refuse_changes(*found, self.model, self.datamodule)
        folder = Path(self.trainer.default_root_dir)
        if found is not None and (folder / CONFIG_FILE).exists():
            dirpaths = [getattr(callback, "dirpath", None) for callback in self.trainer.checkpoint_callbacks]
            refuse_foreign_checkpoint(found[0], folder, [Path(dirpath) for dirpath in dirpaths if dirpath])
        new = not self._get(self.config, "ckpt_path") and not writes_nothing(self.trainer)
        if new and has_begun(folder):
            refuse_earlier_run(folder)
        if not self._get(self.config, "ckpt_path"):
            self._leave_exceptions_alone()
        self._load_weights()

    def _leave_exceptions_alone(self) -> None:
        """Begins a new run at update 0, and does not let it overwrite what another one left at an exception.

        Raises:
            ValueError: There is such a checkpoint.
        """
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, OnExceptionCheckpoint):
                if Path(callback.ckpt_path).exists():
                    raise ValueError(
                        f"OnExceptionCheckpoint: expected no {callback.ckpt_path}, which an earlier run left at an "
                        f"exception, found it; continue that run with --ckpt_path={callback.ckpt_path}, or remove it"
                    )
                begin_anew(self.trainer)

    def _load_weights(self) -> None:
        """Loads ``--weights`` into a model that continues no run.

        Raises:
            ValueError: Its options stand without it.
            CheckpointError: See `load_weights`.
        """
        weights, parts = self._get(self.config, "weights"), self._get(self.config, "weights_parts")
        with_optimizer = self._get(self.config, "weights_optimizer")
        if weights is None and (parts is not None or with_optimizer):
            name = "weights_optimizer" if parts is None else "weights_parts"
            raise ValueError(f"{name}: expected only together with weights; add --weights=RUN_OR_CHECKPOINT")
        if weights is not None and not self._get(self.config_init, "ckpt_path"):
            load_weights(self.model, weights, parts, with_optimizer)

    def before_validate(self) -> None:
        """Checks that there is a checkpoint to measure and held-out data to measure it on.

        Raises:
            ValueError: No checkpoint is named, or the dataset has no validation part.
            CheckpointError: The checkpoint is missing, damaged, or of another algorithm.
        """
        if not self._get(self.config, "ckpt_path"):
            raise ValueError(
                "ckpt_path: expected the checkpoint to measure, found none; add --ckpt_path=last or a file"
            )
        found = self._find_checkpoint()
        if found is not None:
            refuse_other_algorithm(*found, type(self.model))
        if self.datamodule.dataset.validation is None:
            raise ValueError(
                f"data.dataset: {self.datamodule.dataset.name} holds no transitions out to measure on; for npz add "
                "--data.dataset.validation_fraction=0.1 to fit and here; for episodes only use: tql evaluate CHECKPOINT"
            )

    before_test = before_validate

    def _find_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """Path and contents of the checkpoint to use; None for none, or one that Lightning finds."""
        named, folder = self._get(self.config, "ckpt_path"), Path(self.trainer.default_root_dir)
        begins_anew = self.subcommand == "fit" and (folder / CONFIG_FILE).is_file()
        found = find_checkpoint(named, self.trainer, begins_anew)
        if named == "last":
            self.config_init[self.subcommand]["ckpt_path"] = str(found[0]) if found else None
        return found


def raised_while_restoring(error: BaseException) -> bool:
    """Whether an error comes from Lightning's restoring of a checkpoint."""
    return any(restores_checkpoint(frame.f_code) for frame, _ in traceback.walk_tb(error.__traceback__))
