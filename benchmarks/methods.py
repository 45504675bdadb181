"""One update of each method at its paper's sizes, beside TQL's and, where it is installed, its authors' under jit.

python -m benchmarks.methods --json
python -m benchmarks.methods --release FQL QC FLOQ TQL --json

FQL, QC, FLOQ and TQL are clones of the repositories of these methods' authors; any of them will do. Their agents are
timed too, which needs jax, flax, optax, distrax and ml_collections. All are called in turn in one process, on one
thread unless --threads says otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Comparison, alternate, clock, machine, parser, prepare, show
from tql_lightning.algorithms.bc import BC
from tql_lightning.algorithms.floq import Floq
from tql_lightning.algorithms.ifql import IFQL
from tql_lightning.algorithms.iql import IQL
from tql_lightning.algorithms.q_transformer import QTransformer
from tql_lightning.algorithms.qc import QC
from tql_lightning.algorithms.rebrac import ReBRAC
from tql_lightning.algorithms.tql import TQL
from tql_lightning.nn.categorical import CategoricalProjection
from tql_lightning.nn.critic import MLPCritic
from tql_lightning.nn.perceiver import PerceiverCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.optimisation import Optimisation
from tql_lightning.training.problem import Problem

CHUNK = 5  # of Q-chunking's
PLAIN_POLICY = partial(FlowPolicy, layer_norm=False)
REWARDS = {"problem": Problem(reward_range=(-2.0, 0.0))}  # of methods that scale or bin returns
METHODS: dict[str, Callable[[int, int], Algorithm]] = {
    "TQL": TQL,
    "BC": BC,
    "FQL": partial(TQL, critic=MLPCritic, policy=PLAIN_POLICY, entropy_control=None, optimisation=Optimisation()),
    "IQL": IQL,
    "IFQL": IFQL,
    "ReBRAC": ReBRAC,
    "QC": lambda observations, actions: QC(observations, CHUNK * actions, problem=Problem(CHUNK)),
    "QC-FQL": lambda observations, actions: QC(
        observations, CHUNK * actions, policy=PLAIN_POLICY, extraction="fql", problem=Problem(CHUNK)
    ),
    "floq": partial(Floq, **REWARDS),
    "PAC": partial(
        TQL,
        critic=PerceiverCritic,
        value_loss=CategoricalProjection,
        policy=PLAIN_POLICY,
        entropy_control=None,
        **REWARDS,
    ),
    "Q-Transformer": partial(QTransformer, **REWARDS),
}
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {  # -> module of the authors' agents, and what its script sets
    "FQL": ("fql", {}),
    "IQL": ("iql", {}),
    "IFQL": ("ifql", {}),
    "ReBRAC": ("rebrac", {}),
    "QC": ("acfql", {"horizon_length": CHUNK, "actor_type": "best-of-n"}),
    "QC-FQL": ("acfql", {"horizon_length": CHUNK}),
    "floq": ("floq", {"r_min": -2.0, "r_max": 0.0}),
    "PAC": ("pac_fql_learner", {"num_heads": 2}),
    "Q-Transformer": ("q_transformer", {"num_heads": 4}),
}


class Update:
    """A method's update in a bare loop, without Lightning.

    Args:
        model: The algorithm.
        batch_size: B.
        device: Where it runs.
    """

    def __init__(self, model: Algorithm, batch_size: int, device: torch.device) -> None:
        self.model = model.to(device)
        self.batch = random_batch(model, batch_size, device)
        self.optimizer, self.schedule = model.optimisation.optimizer(model.parameter_groups(), False, device, False)
        self.number = 0

    def __call__(self) -> None:
        """Draws the noise of one update and makes it."""
        draws = {"normal": torch.randn, "uniform": torch.rand}
        size, device = len(self.batch.observations), self.batch.observations.device
        shapes = self.model.noise_draws().values()
        noise = self.model.Noise(*(draws[d.distribution](size, *d.shape, device=device) for d in shapes))
        inputs = self.model.inputs(self.number)
        self.optimizer.zero_grad()
        self.model.losses(self.batch, noise, inputs, with_metrics=False).total.backward()
        self.model.before_step(inputs)
        self.optimizer.step()
        self.model.after_step(inputs)
        self.schedule.step()
        self.number += 1


def random_batch(model: Algorithm, size: int, device: torch.device) -> Any:
    """A batch of a model's fields."""
    normal = partial(torch.randn, device=device)
    ones = torch.ones(size, device=device)
    fields = {
        "observations": normal(size, model.observation_dim),
        "actions": normal(size, model.action_dim).tanh(),
        "rewards": normal(size),
        "next_observations": normal(size, model.observation_dim),
        "masks": ones,
        "next_actions": normal(size, model.action_dim).tanh(),
        "next_action_known": ones,
        "valid": torch.ones(size, model.action_chunk, device=device),
        "terminals": 1.0 - ones,
        "monte_carlo_returns": -ones,
        "monte_carlo_remainders": ones,
    }
    return model.Batch(**{name: fields[name] for name in model.Batch._fields})


def released_agent(name: str, folders: Sequence[Path]) -> Any:
    """The module with the authors' agent of a method, from the first clone that has one; None if none has.

    Clones name their packages alike, so that those of another clone are forgotten first.
    """
    module = RELEASED[name][0] if name in RELEASED else ""
    folder = next((folder for folder in folders if (folder / "agents" / f"{module}.py").is_file()), None)
    if folder is None:
        return None
    for known in [each for each in sys.modules if each.partition(".")[0] in ("agents", "utils")]:
        del sys.modules[known]
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(f"agents.{module}")
    finally:
        sys.path.remove(str(folder))


def released_update(name: str, module: Any, options: argparse.Namespace) -> Callable[[], object]:
    """The update of the authors' agent, under jit, on arrays that already lie on its device."""
    jax: Any = importlib.import_module("jax")
    config = module.get_config()
    with config.unlocked():
        config.update(RELEASED[name][1])
    rng = np.random.default_rng(0)
    size, observation_dim, action_dim = options.batch, options.observation_dim, options.action_dim
    steps = (CHUNK,) if module.__name__ == "agents.acfql" else ()
    batch = {
        "observations": rng.normal(size=(size, observation_dim)),
        "actions": np.tanh(rng.normal(size=(size, *steps, action_dim))),
        "rewards": rng.normal(size=(size, *steps)),
        "next_observations": rng.normal(size=(size, *steps, observation_dim)),
        "masks": np.ones((size, *steps)),
        "next_actions": np.tanh(rng.normal(size=(size, action_dim))),
        "valid": np.ones((size, *steps)),
        "terminals": np.zeros((size, *steps)),
        "mc_returns": -np.ones(size),
    }
    batch = {key: jax.numpy.asarray(array, dtype="float32") for key, array in batch.items()}
    own = (each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__)
    kind: Any = next(each for each in own if hasattr(each, "create"))
    if "example_batch" in inspect.signature(kind.create).parameters:
        agent = kind.create(0, batch | {"min_reward": -2.0, "max_reward": 0.0}, config)
    elif steps:  # QC's example is a single step without a batch axis
        agent = kind.create(0, batch["observations"][0], batch["actions"][0, 0], config)
    else:
        agent = kind.create(0, batch["observations"], batch["actions"], config)
    state = {"agent": agent, "number": 0}

    def update() -> None:
        state["number"] += 1
        full = {"full_update": state["number"] % config["actor_freq"] == 0} if name == "ReBRAC" else {}
        state["agent"], info = state["agent"].update(batch, **full)
        jax.block_until_ready((state["agent"].network.params, info))

    return update


def ratios(comparison: Comparison, name: str) -> dict[str, float]:
    """A method's time, over TQL's and over its authors' where that was timed."""
    fields = {
        "update_s": comparison.median(name),
        "spread_s": comparison.spread(name),
        "ratio_to_tql": comparison.ratio(name, "TQL"),
    }
    if f"{name} released" in comparison.seconds:
        fields["ratio_to_release"] = comparison.ratio(name, f"{name} released")
    return fields


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Times every method that was asked for; returns the fields that are printed."""
    prepare(options)
    if options.threads == 1:
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    device = torch.device(options.device)
    torch.manual_seed(0)
    names = options.methods or list(METHODS)
    variants: dict[str, Callable[[], object]] = {}
    for name in dict.fromkeys(["TQL", *names]):
        model = METHODS[name](options.observation_dim, options.action_dim)
        variants[name] = Update(model, options.batch, device)
        module = released_agent(name, options.release)
        if module is not None:
            variants[f"{name} released"] = released_update(name, module, options)
    comparison = alternate(variants, device, options.rounds, options.warmup, 2, clock(options))  # ReBRAC's: 2 kinds
    methods = {name: ratios(comparison, name) for name in METHODS if name in variants}
    return {
        "methods": methods,
        "device": str(device),
        "batch": options.batch,
        "observation_dim": options.observation_dim,
        "action_dim": options.action_dim,
        "threads": options.threads,
        "machine": machine(options.device),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with options of the command line."""
    options = parser(__doc__)
    options.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=None, help="all if not given")
    options.add_argument("--release", type=Path, nargs="+", default=(), help="clones of the authors' repositories")
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--observation-dim", type=int, default=37)
    options.add_argument("--action-dim", type=int, default=5)
    chosen = options.parse_args(arguments)
    show(run(chosen), chosen.json)


if __name__ == "__main__":
    main()
