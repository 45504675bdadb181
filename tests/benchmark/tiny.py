"""A benchmark of seconds: two methods on a toy problem, evaluated in Pendulum."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.command_line import TINY

EVALUATIONS = """    - class_path: tql_lightning.callbacks.rollout_evaluation.RolloutEvaluation
      init_args: {episodes: 2, every_n_updates: EVERY, num_envs: 2}
"""
LOGGED = """  log_every_n_steps: 5
  logger:
    - class_path: tql_lightning.loggers.ContinuedCSVLogger
      init_args: {save_dir: "${trainer.default_root_dir}", flush_logs_every_n_steps: 1}
"""


def write_suite(folder: Path, updates: int = 15, every_n_updates: int = 5, **changes: object) -> Path:
    """Writes tiny.yaml and suite.yaml into a folder; returns the latter's path."""
    config = TINY.replace("  log_every_n_steps: 10\n", LOGGED).replace("max_steps: 20", f"max_steps: {updates}")
    config = config.replace("  default_root_dir: run\n", "")
    config = config.replace("every_n_updates: 10", f"every_n_updates: {every_n_updates}")
    before, after = config.split("model:\n", 1)
    (folder / "tiny.yaml").write_text(f"{before}{EVALUATIONS.replace('EVERY', str(updates // 3))}model:\n{after}")
    suite = {
        "metric": "return",
        "protocol": "last_three",
        "seeds": [0, 1],
        "settings": {"data.dataset": "tests.toy.toy_dataset", "data.dataset.env_id": "Pendulum-v1"},
        "domains": {"toy": {"config": "tiny.yaml"}},
        "methods": {"tql": {}, "careful": {"settings": {"model.bc_coefficient": 100.0}}},
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite | changes, sort_keys=False))
    return path
