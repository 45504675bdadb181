"""One update: ours against the plain implementation beside it, after a check that losses and gradients are equal.

python -m benchmarks.update --hidden-dim 128 --device cpu --json
python -m benchmarks.update --hidden-dim 1024 --device cuda --precision bfloat16 --compile --cuda-graphs --json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import (
    CALLS,
    PRECISIONS,
    Peak,
    alternate,
    clock,
    count_flops,
    machine,
    matmul_precision,
    parser,
    prepare,
    shares_of_time,
    show,
)
from benchmarks.plain import PlainTQL, separate_qkv
from tql_lightning.algorithms.tql import OPTIMISATION, TQL, TQLNoise
from tql_lightning.batch import Batch
from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.transformer import TransformerBlock
from tql_lightning.training.execution import Execution
from tql_lightning.training.update import UpdateRunner

TOLERANCE = 1e-4  # of a gradient's largest entry, in float32


class Problem:
    """A model and one minibatch.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        self.precision: str = options.precision
        critic: dict[str, Any] = {"hidden_dim": options.hidden_dim, "num_layers": options.layers}
        if options.implementation is not None:
            attention = partial(EntropyAttention, implementation=options.implementation)
            critic["block"] = partial(TransformerBlock, attention=attention)
        policy: dict[str, Any] = {} if options.policy_dim is None else {"hidden_dims": (options.policy_dim,) * 4}
        self.model = TQL(
            options.observation_dim,
            options.action_dim,
            critic=partial(TransformerCritic, **critic),
            policy=partial(FlowPolicy, **policy),
            optimisation=replace(OPTIMISATION, lr_schedule="constant"),
            execution=Execution(compile=options.compile, cuda_graphs=options.cuda_graphs),
        ).to(self.device)
        self.runner = runner_without_trainer(self.model)
        self.plain = PlainTQL(self.model).to(self.device)
        self.batch, self.noise = random_minibatch(options, self.device)
        configured: Any = self.model.configure_optimizers()
        self.optimizer, self.schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        self.inputs = self.model.current_inputs()
        self.graphed = self.runner.record(self.optimizer, list(self.inputs)) if options.cuda_graphs else None

    def backward(self, with_metrics: bool = False) -> Tensor:
        """Leaves the gradients of our losses; returns their sum."""
        self.optimizer.zero_grad()
        with precision_context(self.precision, self.device):
            total = self.runner.losses(self.batch, self.noise, self.inputs, with_metrics).total
        total.backward()
        return total.detach()

    def ours(self) -> None:
        """One update of ours in a bare loop, without Lightning."""
        with precision_context(self.precision, self.device):
            if self.graphed is not None:
                self.graphed((*self.batch, *self.noise, *self.inputs.values()))
            else:
                self.runner.step(self.batch, self.noise, self.inputs, self.optimizer, with_metrics=False)
        self.schedule.step()

    def plain_update(self) -> None:
        """One update of the plain implementation."""
        with precision_context(self.precision, self.device):
            self.plain.update(self.batch, self.noise)

    def check_equal(self) -> float:
        """Compares losses and gradients at the same parameters, in float32.

        Returns:
            The largest difference of a gradient over the largest entry of its array.

        Raises:
            AssertionError: a loss or a gradient differs; the message names it.
        """
        ours, plain = self.backward(), self.plain.backward(self.batch, self.noise)
        assert torch.isclose(ours, plain, rtol=1e-5), f"loss: ours {ours.item()}, plain {plain.item()}"
        largest = 0.0
        for name, gradient, other in self.gradient_pairs():
            difference = ((gradient - other).abs().max() / other.abs().max().clamp(min=1e-8)).item()
            assert difference <= TOLERANCE, f"gradient of {name} differs by {difference:.2g} of its largest entry"
            largest = max(largest, difference)
        return largest

    def gradient_pairs(self) -> list[tuple[str, Tensor, Tensor]]:
        """Gradients by name, ours and the plain ones; all but the key biases', which are zero but for rounding."""
        ours = separate_qkv({f"critic.{name}": p.grad for name, p in self.model.critic.named_parameters()})
        ours |= {f"policy.{name}": parameter.grad for name, parameter in self.model.policy.named_parameters()}
        ours["log_temperature"] = self.model.temperature.raw.grad
        plain = {name: p.grad for name, p in self.plain.named_parameters() if not name.startswith("target_critic.")}
        assert ours.keys() == plain.keys()
        return [(name, ours[name], plain[name]) for name in ours if not name.endswith(".key.bias")]


def runner_without_trainer(model: TQL) -> UpdateRunner:
    """Runs a model's updates in a bare loop."""
    model.manual_backward = torch.autograd.backward  # type: ignore[method-assign]  # Lightning's asks the trainer
    return UpdateRunner(model)


def precision_context(precision: str, device: torch.device) -> Any:
    """Autocast for bfloat16, as Lightning's: without a cache of cast weights."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
    return nullcontext()


def random_minibatch(options: argparse.Namespace, device: torch.device) -> tuple[Batch, TQLNoise]:
    """A batch and its noise of the sizes asked for."""
    size, observation_dim, action_dim = options.batch, options.observation_dim, options.action_dim
    normal: Callable[..., Tensor] = partial(torch.randn, device=device)
    actions = torch.rand(size, action_dim, device=device) * 2 - 1
    batch = Batch(
        normal(size, observation_dim),
        actions,
        normal(size),
        normal(size, observation_dim),
        torch.ones_like(actions[:, 0]),
    )
    draws = [normal(size, action_dim) for _ in range(4)]
    return batch, TQLNoise(draws[0], draws[1], torch.rand(size, 1, device=device), draws[2], draws[3])


def update_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options of benchmarks that make updates: sizes, precision, compilation."""
    options = parser(description, **defaults)
    options.add_argument("--hidden-dim", type=int, default=128, help="of the critic: 128, 256, 512 or 1024")
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--observation-dim", type=int, default=37)
    options.add_argument("--action-dim", type=int, default=5)
    options.add_argument("--policy-dim", type=int, default=None, help="width of the policy's four layers; 512 as usual")
    options.add_argument("--precision", choices=sorted(PRECISIONS), default="float32")
    options.add_argument("--compile", action="store_true", help="compile our losses")
    options.add_argument("--cuda-graphs", action="store_true", help="replay our update in one launch; on CUDA")
    options.add_argument("--implementation", default=None, help="of attention; the fastest if not given")
    return options


def run(options: argparse.Namespace, peak_size: int | None = None) -> dict[str, Any]:
    """Checks equality and times; returns the fields that are printed."""
    prepare(options)
    eager = Problem(as_counted(options))
    problem = Problem(options)
    with matmul_precision("float32"):  # also where something else is timed, which is the same code
        largest = (problem if options.precision == "float32" else eager).check_equal()
    flops, plain_flops = count_flops(eager.ours), count_flops(eager.plain_update)
    del eager
    peak = Peak(options.device, options.precision, peak_size)
    variants = {"ours": problem.ours, "plain": problem.plain_update, **peak.variants}
    with matmul_precision(options.precision):
        calls = dict.fromkeys(("ours", "plain"), CALLS[problem.device.type])
        comparison = alternate(variants, options.device, options.rounds, options.warmup, calls, clock(options))
        where = shares_of_time(problem.ours, options.device) if options.profile else None
    return {
        "ours_updates_per_s": 1.0 / comparison.median("ours"),
        **comparison.fields("ours"),
        **comparison.fields("plain"),
        "ratio": comparison.ratio("ours", "plain"),
        "ratio_spread": comparison.ratio_spread("ours", "plain"),
        "device": str(options.device),
        "hidden_dim": options.hidden_dim,
        "batch": options.batch,
        "observation_dim": options.observation_dim,
        "action_dim": options.action_dim,
        "layers": options.layers,
        "precision": options.precision,
        "compile": options.compile,
        "cuda_graphs": options.cuda_graphs,
        "implementation": options.implementation or "auto",
        "threads": options.threads,
        "largest_gradient_difference": largest,
        **peak.fields(comparison, "ours", float(flops)),
        "plain_flops": float(plain_flops),
        "machine": machine(options.device),
        **({} if where is None else {"shares_of_time": where}),
    }


def as_counted(options: argparse.Namespace) -> argparse.Namespace:
    """The same update in the form whose matrix products can be counted: eager, by torch's own operators, in float32."""
    eager = {"compile": False, "cuda_graphs": False, "implementation": "plain", "precision": "float32"}
    return argparse.Namespace(**vars(options) | eager)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with options of the command line."""
    options = update_parser(__doc__)
    options.add_argument("--profile", action="store_true", help="also tell which kernels the time of ours goes to")
    chosen = options.parse_args(arguments)
    show(run(chosen), chosen.json)


if __name__ == "__main__":
    main()
