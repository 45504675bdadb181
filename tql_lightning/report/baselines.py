"""What methods are compared with on a task, and what the page says where it is not known."""

from __future__ import annotations

from collections.abc import Sequence

from tql_lightning.report.methods import Method
from tql_lightning.report.numbers import SCORES
from tql_lightning.run.baselines import CLONING, DATASET

CLONING_CLASS = "tql_lightning.algorithms.bc.BC"


def baselines_on(methods: Sequence[Method], task: str, score: str) -> dict[str, float]:
    """Mean of each baseline's score over a task's runs that record it."""
    found: dict[str, list[float]] = {}
    for method in methods:
        for run in method.on(task):
            for name, scores in run.baselines.items():
                if score in scores:
                    found.setdefault(name, []).append(scores[score])
    return {name: sum(values) / len(values) for name, values in found.items()}


def absent_baselines(methods: Sequence[Method], tasks: Sequence[str], score: str) -> list[str]:
    """A sentence for each baseline that is not known on all tasks: why, and how to get it."""
    found = {task: baselines_on(methods, task, score) for task in tasks}
    runs = [run for method in methods for run in method.runs]
    cloned = {run.task for run in runs if run.config.get("model.class_path") == CLONING_CLASS}
    no_dataset = [task for task in tasks if DATASET not in found[task]]
    no_cloning = [task for task in tasks if CLONING not in found[task] and task not in cloned]
    sentences = []
    if no_dataset:
        sentences.append(
            f"The dataset's {SCORES[score].title} is not known{_where(no_dataset, tasks)}: its episodes are not those "
            "of the environment, do not hold this score, or no evaluation during training recorded it."
        )
    if no_cloning:
        sentences.append(
            f"Nothing is known of behaviour cloning{_where(no_cloning, tasks)}: tql evaluate "
            "RUN/checkpoints/last.ckpt --extraction behaviour_flow adds that of a flow policy, --config method/bc "
            "trains it."
        )
    return sentences


def _where(some: Sequence[str], tasks: Sequence[str]) -> str:
    return "" if len(some) == len(tasks) else f" on {', '.join(some)}"
