"""Runs the command line as a user does, or only parses it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from inspect import signature
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

from tql_lightning.algorithms.tql import TQL
from tql_lightning.cli.commands import COMMANDS, GROUPS
from tql_lightning.cli.configs import resolve_configs
from tql_lightning.cli.lightning import TQLCLI
from tql_lightning.cli.main import main
from tql_lightning.cli.parsers import command_parser

TQL_COMMAND = str(Path(sys.executable).parent / "tql")
PATIENCE = 800.0  # seconds for a process that needs a few, where many wait for few cores; below pytest's own limit
TINY = """
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 20
  log_every_n_steps: 10
  default_root_dir: run
  callbacks:
    - class_path: tql_lightning.callbacks.checkpointing.GracefulInterrupt
    - class_path: tql_lightning.callbacks.checkpointing.LastCheckpoint
      init_args:
        dirpath: ${trainer.default_root_dir}/checkpoints
        every_n_updates: 10
model:
  critic:
    class_path: tql_lightning.nn.critic.TransformerCritic
    init_args: {hidden_dim: 32}
  policy:
    class_path: tql_lightning.nn.policy.FlowPolicy
    init_args: {hidden_dims: [16], flow_steps: 2}
data:
  batch_size: 8
"""


def run_tql(folder: Path, *arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Runs ``tql`` in a folder to its end, within so many seconds."""
    command = [TQL_COMMAND, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=timeout)


def call_tql(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As `run_tql`, in this process: for what does not hang on a process of its own, which takes seconds to start."""
    printed, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(errors):
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "argv", ["tql"])
        with warnings.catch_warnings():
            code = main(arguments)
    for name, module in list(sys.modules.items()):  # a user's modules, which another folder may have too
        if str(getattr(module, "__file__", None) or "").startswith(f"{folder}/"):
            del sys.modules[name]
    return subprocess.CompletedProcess(["tql", *arguments], code, printed.getvalue(), errors.getvalue())


class ParsedOnly(TQLCLI):
    """The command line of fit alone, without what follows parsing."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Fit."""
        return {"fit": TQLCLI.subcommands()["fit"]}

    def instantiate_classes(self) -> None:
        """Makes nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs nothing."""


def parse_fit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """The whole configuration of ``tql fit ARGUMENTS``, with its interpolations resolved."""
    resolved = resolve_configs(["fit", *arguments], TQLCLI.subcommands())
    monkeypatch.setattr(sys, "argv", ["tql", *resolved])
    configuration: dict[str, Any] = ParsedOnly().config["fit"].as_dict()
    return configuration


def understand(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]) -> None:
    """Parses a command that a document shows; a user's own `mine.py` is left out.

    Raises:
        ArgumentError, SystemExit: there is no such command, option or value.
    """
    name, *rest = arguments
    if name in COMMANDS:
        command = COMMANDS[name]
        if isinstance(command, dict):
            command, rest = command[rest[0]], rest[1:]
        command_parser(name, command, GROUPS.get(name)).parse_args(rest)
    elif name == "fit" and "--help" not in rest and not re.search(r"=mine\.(?!npz)", " ".join(rest)):
        parse_fit(monkeypatch, *rest)


def make_model(configuration: dict[str, Any], observation_dim: int, action_dim: int, kind: type = TQL) -> Any:
    """The model of a configuration for given sizes."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "model")
    of_the_data = {
        "observation_dim": observation_dim,
        "action_dim": action_dim,
        "problem": {"reward_range": (-2.0, 0.0)},
        "action_range": ([-1.0] * action_dim, [1.0] * action_dim),
    }
    taken = {name: value for name, value in of_the_data.items() if name in signature(kind).parameters}
    model = parser.instantiate_classes(parser.parse_object({"model": configuration["model"] | taken})).model
    assert isinstance(model, kind)
    return model
