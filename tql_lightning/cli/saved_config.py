"""Writes a run's configuration into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning_utilities.core.rank_zero import rank_zero_warn

from tql_lightning.cli.configs import refer_to_folder
from tql_lightning.run.folder import CONFIG_FILE, METRICS_BEFORE_FILE, METRICS_FILE, writes_nothing
from tql_lightning.run.provenance import record_start
from tql_lightning.run.superseded import take_back
from tql_lightning.system.files import write_text_whole
from tql_lightning.system.full_disk import unwritten


class SaveFitConfig(SaveConfigCallback):
    """Writes the resolved configuration and the run's provenance into its folder; only for fit.

    Args:
        arguments: Command line as the user typed it.
        settings: Arguments of Lightning's callback.
    """

    def __init__(self, *settings: Any, arguments: Sequence[str] = (), **named_settings: Any) -> None:
        super().__init__(*settings, **named_settings)
        self.config = self.config.clone()
        self.config.pop("force", None)  # valid for this command only; later commands read the file
        self._arguments = arguments

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Does nothing: if a later callback refuses to start, an earlier run's file must stay."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Runs Lightning's ``setup`` once every callback is set up and the checkpoint is loaded.

        A run that ended before its first checkpoint begins anew: its records are set aside.
        """
        if writes_nothing(trainer):
            return
        folder = Path(trainer.default_root_dir)
        if trainer.ckpt_path is None and (folder / CONFIG_FILE).is_file():
            rank_zero_warn(f"{folder}: its run ended before its first checkpoint, and begins anew")
            if trainer.is_global_zero and (folder / METRICS_FILE).is_file():
                (folder / METRICS_FILE).replace(folder / METRICS_BEFORE_FILE)
            take_back(trainer, -1)
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Replaces the file in one step, so that it is whole even if the process is killed.

        Paths in the run's folder refer to ``trainer.default_root_dir``, so that a copied or renamed run still works.

        Raises:
            OSError: The file cannot be written; the old one stays.
        """
        path = Path(trainer.default_root_dir) / CONFIG_FILE
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        settings = refer_to_folder(settings, self.config.trainer.default_root_dir)
        try:
            write_text_whole(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise OSError(unwritten(path, error)) from error

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002  (Lightning's arguments)
        """Records the start, once the update to continue from is known."""
        if trainer.is_global_zero and not writes_nothing(trainer):
            root = trainer.strategy.root_device
            device = torch.cuda.get_device_name(root) if root.type == "cuda" else str(root)
            folder = Path(trainer.default_root_dir)
            record_start(folder, self._arguments, trainer.global_step, device, trainer.world_size)
