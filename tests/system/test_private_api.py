"""The installed torch, Lightning and jsonargparse have the private names that the project uses."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GATHERED = {ROOT / "tql_lightning" / package / "private_api.py" for package in ("system", "cli", "nn")}
FILES = [*(ROOT / "tql_lightning").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]
FILES = [path for path in FILES if ROOT / "tql_lightning" / "callbacks" not in path.parents]  # the link to the latter
NAMED_TUPLE = {"_fields", "_asdict", "_replace", "_make"}  # documented
OF_PYTHON = {"_exit", "_compat_pickle"}  # of os, documented; of the standard library

# Distribution, module, class or "" for the module itself, names.
CALLED = [
    ("torch", "torch", "", ["_foreach_copy_", "_foreach_lerp_", "_foreach_norm", "_dynamo"]),
    ("torch", "torch.ops", "mkldnn", ["_linear_pointwise"]),
    ("torch", "torch._functorch", "config", []),
    ("torch", "torch.distributed.fsdp", "FSDPModule", ["_get_fsdp_state"]),
    ("torch", "torch.distributed.fsdp._fully_shard._fsdp_state", "FSDPState", ["_comm_ctx", "_fsdp_param_group"]),
    ("torch", "torch.distributed.fsdp._fully_shard._fsdp_param_group", "FSDPParamGroup", ["_post_forward_indices"]),
    ("torch", "torch.utils.tensorboard", "SummaryWriter", ["_get_file_writer"]),
    ("tensorboard", "tensorboard.summary.writer.event_file_writer", "EventFileWriter", ["_file_name"]),
    (
        "lightning",
        "lightning.pytorch.loops.training_epoch_loop",
        "_TrainingEpochLoop",
        ["_batches_that_stepped", "_should_check_val_fx", "_skip_next_val"],
    ),
    ("lightning", "lightning.pytorch.loops.fit_loop", "_FitLoop", ["_data_fetcher", "_load_combined_loader_states"]),
    ("lightning", "lightning.pytorch", "Trainer", ["_active_loop", "_logger_connector"]),
    ("lightning", "lightning.pytorch.trainer.connectors.logger_connector.logger_connector", "_LoggerConnector", []),
    ("lightning", "lightning.pytorch.strategies", "DDPStrategy", ["_ddp_kwargs", "_pl_static_graph_delay_done"]),
    ("lightning", "lightning.pytorch.strategies.launchers", "_MultiProcessingLauncher", ["_start_method"]),
    ("lightning", "lightning.pytorch.strategies", "Strategy", ["_checkpoint_io"]),
    ("lightning", "lightning.pytorch.plugins.io.wrapper", "_WrappingCheckpointIO", []),
    (
        "lightning",
        "lightning.pytorch.callbacks",
        "ModelCheckpoint",
        ["_defer_save_until_validation", "_every_n_epochs", "_find_last_checkpoints", "_train_time_interval"],
    ),
    ("lightning", "lightning.pytorch.callbacks", "Timer", ["_interval"]),
    ("lightning", "lightning.pytorch.core.mixins.hparams_mixin", "", ["_given_hyperparameters_context"]),
    ("lightning", "lightning.pytorch", "Trainer", ["_checkpoint_connector"]),
    (
        "lightning",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
        "_CheckpointConnector",
        [
            *("_hpc_resume_path", "_user_managed"),
            *("dump_checkpoint", "resume_start", "restore_model", "restore_callbacks", "restore_optimizers"),
        ],
    ),
    ("minari", "minari", "MinariDataset", ["_eval_env_spec"]),
    ("jsonargparse", "jsonargparse", "ArgumentParser", ["_actions", "_action_groups"]),
    ("jsonargparse", "jsonargparse._subcommands", "ActionSubCommands", ["_choices_actions"]),
    ("jsonargparse", "jsonargparse._typehints", "ActionTypeHint", ["_typehint"]),
]

# What subclasses override, or read and set on themselves.
INHERITED = [
    ("torch", "torch.nn", "Module", ["_save_to_state_dict", "_load_from_state_dict"]),
    ("torch", "torch.optim", "AdamW", ["_warned_capturable_if_run_uncaptured"]),
    ("lightning", "lightning.pytorch", "LightningModule", ["_trainer"]),
    ("lightning", "lightning.pytorch.strategies", "ModelParallelStrategy", ["_data_parallel_size"]),
    (
        "lightning",
        "lightning.pytorch.callbacks",
        "ModelCheckpoint",
        [
            *("_every_n_train_steps", "_last_checkpoint_saved", "_last_global_step_saved", "_monitor_candidates"),
            *("_save_checkpoint", "_save_last_checkpoint", "_save_topk_checkpoint", "_should_skip_saving_checkpoint"),
        ],
    ),
    (
        "lightning",
        "lightning.pytorch.cli",
        "LightningCLI",
        [
            *("_add_subcommands", "_get", "_model_class", "_parse_ckpt_path", "_prepare_subcommand_parser"),
            *("_run_subcommand", "_subcommand_parsers"),
        ],
    ),
    ("lightning", "lightning.pytorch.loggers", "CSVLogger", ["_experiment", "_flush_logs_every_n_steps"]),
    ("lightning", "lightning.pytorch.loggers", "TensorBoardLogger", ["_experiment", "_kwargs"]),
]


@pytest.mark.parametrize(("library", "module", "owner", "names"), CALLED + INHERITED)
def test_the_installed_library_has_the_private_names(library: str, module: str, owner: str, names: list[str]) -> None:
    found = import_module(module)
    place = f"{library} {version(library)}: {module}"
    if owner:
        assert hasattr(found, owner), f"{place} has no {owner} any more"
        found = getattr(found, owner)
    for name in names:
        assert _has(found, name), f"{place}.{owner or module} has no {name} any more; see {_user(name)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_other_files_use_no_private_name_of_a_library_that_is_not_inherited(path: Path) -> None:
    allowed = {name for *_, names in INHERITED for name in names} | OF_PYTHON
    if path in GATHERED:
        allowed |= {part for _, module, owner, names in CALLED for part in (*module.split("."), owner, *names)}
        allowed.add("_fsdp_param_groups")  # of newer versions of torch, instead of _fsdp_param_group
    used = _private_names(path)
    assert used <= allowed, f"{path}: private names {sorted(used - allowed)}; move their use to a private_api.py"


def _has(owner: object, name: str) -> bool:
    """Whether a module or class has a name; for a class also one that its methods set on ``self``."""
    if hasattr(owner, name):
        return True
    classes = inspect.getmro(owner) if inspect.isclass(owner) else ()
    return any(f"self.{name}" in inspect.getsource(each) for each in classes if each.__module__ != "builtins")


def _user(name: str) -> str:
    """A file that uses a name, for the message."""
    return str(next(path.relative_to(ROOT) for path in FILES if name in path.read_text()))


def _private_names(path: Path) -> set[str]:
    """Private names that a file uses and does not define: attributes, imported names and parts of module paths."""
    tree = ast.parse(path.read_text())
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            used |= {*str(node.module).split("."), *(alias.name for alias in node.names)}
    return {name for name in used if _is_private(name)} - _OURS - _defined(path) - NAMED_TUPLE


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _defined(path: Path) -> set[str]:
    """Private names of the project: definitions, and attributes that methods set on ``self``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
    return {name for name in names if _is_private(name)}


_OURS = {name for path in FILES for name in _defined(path)} - {name for *_, names in CALLED for name in names}
