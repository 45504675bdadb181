"""The folder that ``tql fit`` writes to by default, named by what its command line varies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tql_lightning.data.named import is_dataset_name, kind_of
from tql_lightning.data.sources.ogbench import split_name
from tql_lightning.run.naming import method_name, run_folder

OUTPUT = "runs"
DATASET = "data.dataset"
TASK = "data.dataset.task"
READING = ("data.dataset.keys", "data.dataset.max_episode_steps")  # how a file is read, which does not vary
TASK_REFERENCE = "${..data.dataset.init_args.task}"  # relative, since only files may refer to absolute keys
SEED_REFERENCE = "${..seed_everything}"
GENERAL = ("own",)  # packaged configurations that say nothing of method or problem
PROBLEMS = {"quickstart": "pendulum"}  # packaged configurations of problems outside "ogbench/"
VARYING = ("model.", "data.", "online.", "weights")  # beginnings of options that make another run
METHOD, SIZE, VARIANT = "method/", "size/", "variant/"


def default_folder(arguments: Sequence[str]) -> str:
    """Folder of a run, named by problem, task, method, size, variant, further configurations, settings and seed.

    Of the settings, those of the trainer do not count, since a run may be continued with another one.

    Args:
        arguments: Command line of fit, with names of configurations as the user typed them.
    """
    options = _options(arguments)
    configs = [value for key, value in options if key in ("c", "config")]
    problems = [name for name in configs if _is_problem(name)]
    dataset = next((value for key, value in reversed(options) if key == DATASET), None)
    named = [name for name in configs if name not in (*problems, *GENERAL)]
    own = [Path(name).stem for name in named if not name.startswith((METHOD, SIZE, VARIANT))]
    task: str | None = None
    if dataset is not None:
        problem, task = _problem_of(dataset)
        own = [name.rpartition("/")[2] for name in problems] + own
    elif problems:
        problem = PROBLEMS.get(problems[-1], problems[-1].rpartition("/")[2])
        task = None if problems[-1] in PROBLEMS else TASK_REFERENCE
    else:
        problem = own.pop(0) if own else "tql"
    algorithm = next((value for key, value in reversed(options) if key == "model"), None)
    names = [algorithm] if algorithm else [_last(configs, METHOD) or "tql"]
    names += [part for part in (_last(configs, SIZE), _last(configs, VARIANT)) if part]
    in_path = {DATASET, *READING} | ({TASK} if task is not None else set())
    settings = [(key, value) for key, value in options if key.startswith(VARYING) and key not in in_path]
    return run_folder(OUTPUT, problem, task, method_name([*names, *own], settings), SEED_REFERENCE)


def _options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Options as (key without dashes, value), in order; a flag without a value has the value ""."""
    found = []
    for argument, following in pairwise([*arguments, "-"]):
        if argument.startswith("-") and len(argument) > 1:
            key, equals, value = argument.lstrip("-").partition("=")
            found.append((key, value if equals else "" if following.startswith("-") else following))
    return found


def _is_problem(name: str) -> bool:
    return not Path(name).is_file() and (name in PROBLEMS or name.startswith("ogbench/"))


def _last(configs: Sequence[str], prefix: str) -> str:
    """Name of the last configuration of a kind, or ""."""
    return next((name.removeprefix(prefix) for name in reversed(configs) if name.startswith(prefix)), "")


def _problem_of(dataset: str) -> tuple[str, str | None]:
    """Problem and task of a dataset given by its name or class path."""
    if not is_dataset_name(dataset):
        return dataset, None
    kind = kind_of(dataset)
    if kind == "ogbench":
        domain, number = split_name(dataset)
        return domain, "default" if number is None else str(number)
    return (dataset.removeprefix("minari:") if kind == "minari" else Path(dataset).stem), None
