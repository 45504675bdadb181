"""The command `tql certify`: a policy or critic from a run, a checkpoint or an exported folder, certified at states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.cli.parsers import CertifiedOutput
from tql_lightning.data.named import load_dataset
from tql_lightning.evaluation.certification import CertificateRow, certify_states, quartiles
from tql_lightning.evaluation.smoothed_actor import zero_noise
from tql_lightning.evaluation.smoothing import Function, Smoothing
from tql_lightning.export.observations import sample_observations
from tql_lightning.export.policy import Policy
from tql_lightning.export.policy_folder import METADATA_FILE
from tql_lightning.run.checkpoint_file import last_of

MEANING = """\
Each bound holds with probability {:g} %, {}: if the observation moves by at most
epsilon (Euclidean), the smoothed output moves by at most the bound. Over these states the standard deviation of the
output is {:.3g}, and those of the observation's components, which are not scaled, are {:.3g} to {:.3g}.
Not certified: the output without smoothing; and returns, since moving every observation also changes which states
are visited."""


class CertifyError(ValueError):
    """Nothing can be certified as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Target:
    """What is certified.

    Attributes:
        name: Name for the user.
        functions: Function of the observation, one for each state.
        states: Observations (K, n_s).
        source: Origin of the states, for the user.
    """

    name: str
    functions: list[Function]
    states: Tensor
    source: str

    @torch.inference_mode()
    def output_spread(self) -> float:
        """Root mean square distance of the states' own outputs from their mean: what bounds compare with."""
        outputs = torch.cat(
            [function(state[None]) for function, state in zip(self.functions, self.states, strict=True)]
        )
        return float(outputs.var(dim=0, correction=0).sum().sqrt())


def certify_target(
    path: Path,
    smoothings: Sequence[Smoothing],
    epsilons: Sequence[float],
    num_states: int,
    output: CertifiedOutput,
    extraction: str | None,
    data: str | None,
    seed: int,
) -> tuple[Target, list[CertificateRow]]:
    """Certifies the actions of a policy, or the values of a critic, at states of a dataset.

    Args:
        path: Folder of a run (its last checkpoint), a checkpoint, or a folder that `tql export` wrote.
        smoothings: Settings, one for each sigma.
        epsilons: Lengths of the move of an observation.
        num_states: K.
        output: "action", or "q": the vector of every head's value of the action that the policy takes at the state.
        extraction: Name of the extraction; None for the model's own.
        data: Name of the dataset; None for the run's.
        seed: Seed of states and noise.

    Raises:
        CertifyError: The target has no such output, or there are no states.
        ValueError: There are too few samples, or the target cannot be loaded.
    """
    if num_states < 1:
        raise CertifyError(f"states: expected at least 1, found {num_states}")
    make = _exported_target if (path / METADATA_FILE).is_file() else _checkpoint_target
    target = make(path, num_states, output, extraction, data, seed)
    return target, certify_states(target.functions, target.states, smoothings, epsilons, seed)


def _checkpoint_target(
    path: Path, num_states: int, output: CertifiedOutput, extraction: str | None, data: str | None, seed: int
) -> Target:
    checkpoint = last_of(path)
    model, raw = load_checkpoint(checkpoint, plays=False)
    if data is None:
        observations, source = sample_observations(raw, num_states, model.observation_dim)
        states = torch.from_numpy(observations)
    else:
        states, source = _states_of(data, num_states, model.observation_dim, seed)
    policy = zero_noise(model.actor(extraction))
    chosen = f"{checkpoint} after {int(raw['global_step']):,} updates, {extraction or model.extraction}, noise at 0"
    if output == "action":
        return Target(f"action of {chosen}", [policy] * num_states, states, source)
    critic: Any = getattr(model, "critic", None)
    if critic is None:
        raise ValueError(
            f"output: expected action, found q, and {type(model).__name__} has no critic; certify its action"
        )
    with torch.inference_mode():
        actions = policy(states)

    def values_of(action: Tensor) -> Function:
        return lambda inputs: critic(inputs, action.expand(len(inputs), -1)).values.float()

    return Target(f"Q of the action of {chosen}", [values_of(action) for action in actions], states, source)


def _exported_target(
    path: Path, num_states: int, output: CertifiedOutput, extraction: str | None, data: str | None, seed: int
) -> Target:
    if output == "q":
        raise CertifyError("output: an exported policy has no values, found q; give a run or a checkpoint")
    if extraction is not None:
        raise CertifyError(f"extraction: an exported policy has its own, found {extraction}; leave it out")
    if data is None:
        raise CertifyError("data: an exported policy does not say where its dataset lies; name it with --data")
    policy = Policy.load(path)
    states, source = _states_of(data, num_states, int(policy.metadata["observation_dim"]), seed)

    def act(inputs: Tensor) -> Tensor:
        return torch.from_numpy(policy.act(inputs.numpy(), deterministic=True)).flatten(1)

    return Target(f"action of {path}, noise at 0, in the environment's units", [act] * num_states, states, source)


def _states_of(data: str, num_states: int, observation_dim: int, seed: int) -> tuple[Tensor, str]:
    dataset = load_dataset(data)
    if dataset.observation_dim != observation_dim:
        raise CertifyError(
            f"data: expected observations of size {observation_dim}, found {dataset.observation_dim} in {dataset.name}"
        )
    rows = np.random.default_rng(seed).integers(len(dataset.observations), size=num_states)
    return torch.from_numpy(np.asarray(dataset.observations[rows], dtype=np.float32)), f"dataset {dataset.name}"


def table(target: Target, rows: Sequence[CertificateRow], smoothing: Smoothing) -> str:
    """Bounds by sigma and epsilon, and what they mean."""
    number = len(target.states)
    spreads = target.states.std(dim=0, correction=0)
    lines = [
        f"{target.name}; {number} states ({target.source})",
        f"  {'sigma':>8}{'epsilon':>9}{'bound: median':>15}{'quartiles':>20}{'smoothing error':>17}{'abstained':>11}",
    ]
    for row in rows:
        start = f"  {row.sigma:8g}{row.epsilon:9g}"
        if row.samples_needed is not None:
            needed = "no number" if row.samples_needed == float("inf") else f"{int(row.samples_needed):,}"
            lines.append(f"{start}   not certified: needs {needed} of certificate samples, or a larger sigma")
        elif not row.bounds:
            lines.append(f"{start}{'-':>15}{'-':>20}{'-':>17}{row.abstained:>11}")
        else:
            lower, median, upper = quartiles(row.bounds)
            error = quartiles(row.smoothing_errors)[1]
            interval = f"[{lower:.3f}, {upper:.3f}]"
            lines.append(f"{start}{median:15.3f}{interval:>20}{error:17.3f}{row.abstained:>11}")
    alpha = smoothing.alpha_1 + smoothing.alpha_2
    joint = 1.0 - number * alpha
    together = f"for all {number} at once with at least {100 * joint:.0f} %" if joint > 0 else "not for all at once"
    scales = (target.output_spread(), float(spreads.min()), float(spreads.max()))
    return "\n".join([*lines, MEANING.format(100 * (1 - alpha), together, *scales)])


def as_json(target: Target, rows: Sequence[CertificateRow], smoothing: Smoothing, seed: int) -> dict[str, Any]:
    """The same as JSON types, with every state's bound."""
    settings = {
        name: getattr(smoothing, name)
        for name in ("samples", "certificate_samples", "alpha_1", "alpha_2", "delta", "coefficient", "candidates")
    }
    return {
        "target": target.name,
        "states": len(target.states),
        "source": target.source,
        "output_spread": target.output_spread(),
        "seed": seed,
        "settings": settings,
        "rows": [row.as_dict() for row in rows],
    }
