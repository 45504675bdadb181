"""Modules that have moved, so that an old import path in a configuration or checkpoint is answered with the new one."""

from __future__ import annotations

import re

_SAME_NAME = {  # by the package that holds them now
    "algorithms": ("losses", "tql"),
    "cli": ("close_names", "commands", "configs", "errors", "quickstart"),
    "data.collecting": ("data.behaviours", "data.collect", "data.gather", "data.partial", "data.pointmaze"),
    "evaluation": ("envs", "landscape", "metrics", "rollout", "videos", "watched_rollout"),
    "export": ("comparison", "observations", "policy", "policy_folder"),
    "loggers": ("media",),
    "report": ("pictures", "plots", "statistics"),
    "run": ("checkpoint_io", "provenance"),
    "system": ("data.files", "full_disk", "signals"),
    "training": (
        *("chunks", "divergence", "held_out", "hyperparameters", "optimisation", "out_of_memory", "resuming"),
        "sharding",
    ),
    "trust": ("class_paths", "torch_file", "yaml_text"),
}
_RENAMED = {
    "background_evaluation": "evaluation.background",
    "captured": "training.cuda_graph",
    "data.collect_ogbench": "data.collecting.ogbench",
    "data_commands": "cli.data_commands",
    "evaluate_command": "cli.commands",
    "interop": "export.release",
    "lightning_cli": "cli.lightning",
    "loops": "training.algorithm",
    "metrics_file": "loggers.csv_logger",
    "precision": "training.trainer_checks",
    "processes": "training.distributed",
    "run_folder": "run.folder",
    "run_lock": "run.lock",
    "sharing_commands": "cli.commands",
    "side_by_side": "evaluation.vector_envs",
    "update_step": "training.update",
}
MOVED = {
    **{old: f"{package}.{old.rpartition('.')[2]}" for package, modules in _SAME_NAME.items() for old in modules},
    **_RENAMED,
}
_PATH = re.compile(r"\btql_lightning\.(\w+(?:\.\w+)*)")


def moved_paths(text: str) -> dict[str, str]:
    """Old import paths that a text mentions, with the new ones."""
    found: dict[str, str] = {}
    for path in _PATH.findall(text):
        parts = path.split(".")
        for count in (2, 1):
            old = ".".join(parts[:count])
            if old in MOVED:
                found[f"tql_lightning.{path}"] = ".".join(["tql_lightning", MOVED[old], *parts[count:]])
                break
    return found
