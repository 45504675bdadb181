"""The configuration that a run keeps in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from tql_lightning.cli.configs import refer_to_folder
from tql_lightning.run.folder import CONFIG_FILE
from tql_lightning.run.provenance import record_start
from tql_lightning.system.files import write_text_whole
from tql_lightning.system.full_disk import unwritten


class SaveFitConfig(SaveConfigCallback):
    """Writes the resolved configuration, and what the run is made with, into its folder, when fitting only.

    Args:
        arguments: the command line as the user gave it.
        settings: Lightning's.
    """

    def __init__(self, *settings: Any, arguments: Sequence[str] = (), **named_settings: Any) -> None:
        super().__init__(*settings, **named_settings)
        self.config = self.config.clone()
        self.config.pop("force", None)  # one command's alone; other commands and runs read the file
        self._arguments = arguments

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Nothing yet: what is set up after this callback may refuse to start, and an earlier run's file stays then."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's ``setup``, once all is set up and the checkpoint to continue from is loaded."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Writes it whole: a run that continues has its configuration whatever ends it meanwhile.

        It is resolved but for the folder, so that a run that is copied, or renamed, goes on where it then lies.

        Raises:
            OSError: it cannot be written; what was there stays.
        """
        path = Path(trainer.default_root_dir) / CONFIG_FILE
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        settings = refer_to_folder(settings, self.config.trainer.default_root_dir)
        try:
            write_text_whole(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise OSError(unwritten(path, error)) from error

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002  (Lightning's arguments)
        """Once the update to continue from is known."""
        if trainer.is_global_zero:
            root = trainer.strategy.root_device
            device = torch.cuda.get_device_name(root) if root.type == "cuda" else str(root)
            folder = Path(trainer.default_root_dir)
            record_start(folder, self._arguments, trainer.global_step, device, trainer.world_size)
