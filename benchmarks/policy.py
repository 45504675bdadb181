"""How long a policy takes to act on one observation, on a CPU: the model in torch, and what `tql export` writes.

    python -m benchmarks.policy --hidden 512 --observation_dim 37 --action_dim 5

Processor time of one call on one thread, a NumPy observation in and a NumPy action out, alternated; ratios are to
``eager``:

eager       the model of the checkpoint, `TQL.actor`
torch       `Policy` on the format "torch"
onnx        `Policy` on the format "onnx"
session     onnxruntime alone, without `Policy`'s checks
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer

from benchmarks.harness import Peak, alternate, count_flops, machine, parser, prepare, show
from tql_lightning import TQL, Policy
from tql_lightning.export.writer import export_checkpoint
from tql_lightning.nn.critic import TransformerCritic
from tql_lightning.nn.policy import FlowPolicy
from tql_lightning.nn.policy_extraction import Extraction

EAGER = "eager"


def variants(model: TQL, folder: Path, extraction: Extraction) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    import onnxruntime

    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    trainer.strategy.connect(model)
    checkpoint = folder / "model.ckpt"
    trainer.save_checkpoint(checkpoint, weights_only=False)
    exported = {
        name: export_checkpoint(checkpoint, folder / name, name, extraction).folder for name in ("torch", "onnx")
    }
    policies = {name: Policy.load(path) for name, path in exported.items()}
    rng = np.random.default_rng(0)
    observation = rng.standard_normal(model.observation_dim, dtype=np.float32)
    actor = model.eval().actor(extraction)
    noise = rng.standard_normal(actor.noise_shape, dtype=np.float32)

    @torch.inference_mode()
    def eager() -> object:
        return actor.act(torch.from_numpy(observation[None]), torch.from_numpy(noise[None])).numpy()[0]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(exported["onnx"] / "policy.onnx", options, ["CPUExecutionProvider"])
    inputs = {"observations": observation[None], "noise": noise[None]}
    calls: dict[str, Callable[[], object]] = {EAGER: eager}
    calls |= {name: partial(policy.act, observation, noise=noise) for name, policy in policies.items()}
    return calls | {"session": lambda: session.run(["actions"], inputs)[0]}


def main(options: argparse.Namespace) -> dict[str, object]:
    """Times the policy and returns the fields of the result."""
    prepare(options)
    critic = partial(TransformerCritic, hidden_dim=options.critic_hidden)
    policy = partial(FlowPolicy, hidden_dims=(options.hidden,) * 4)
    model = TQL(options.observation_dim, options.action_dim, critic=critic, policy=policy)
    with tempfile.TemporaryDirectory() as folder:
        calls = variants(model, Path(folder), options.extraction)
        flops, peak = float(count_flops(calls[EAGER])), Peak()
        comparison = alternate(
            {**calls, **peak.variants},
            rounds=options.rounds,
            warmup=options.warmup,
            calls=dict.fromkeys(calls, options.calls),
            clock=time.process_time,
        )
    fields: dict[str, object] = {"machine": machine("cpu"), "extraction": options.extraction}
    for name in calls:
        fields |= comparison.fields(name) | peak.fields(comparison, name, flops)
        fields[f"{name}_over_{EAGER}"] = comparison.ratio(name, EAGER)
    return fields


if __name__ == "__main__":
    arguments = parser(__doc__, rounds=30, warmup=20)
    arguments.add_argument("--hidden", type=int, default=512, help="width of the policy's four hidden layers")
    arguments.add_argument("--critic_hidden", type=int, default=128, help="of the critic; best_of_n alone needs it")
    arguments.add_argument("--observation_dim", type=int, default=37, help="n_s")
    arguments.add_argument("--action_dim", type=int, default=5, help="n_a")
    arguments.add_argument("--extraction", default="fql", choices=("fql", "best_of_n", "behaviour_flow"))
    arguments.add_argument("--calls", type=int, default=20, help="calls in one timing")
    chosen = arguments.parse_args()
    show(main(chosen), chosen.json)
