"""Transformer Q-Learning (TQL, arXiv 2602.01439): the algorithm, read from top to bottom.

`TQL.losses` computes everything it minimises, equation by equation, with functions of `algorithms.losses` and
`algorithms.critics`. All losses are computed at the old parameters and summed, and one gradient step is made. The
target critic moves towards the critic as it was BEFORE that step.

Deviations from paper and release, and why:

- One AdamW has parameter groups instead of one optimizer per network. The update is the same, bit for bit, but the
  global step counts once, and distributed training needs no search for unused parameters.
- The last transformer block computes only what the [VALUE] token needs, and the first takes its tokens as factors. Both
  are exact up to rounding; see `nn.attention`, `nn.scalar_tokens`.
- Attention entropy is -sum p log_softmax; the release clips p at 1e-9 inside the logarithm. They differ by less than
  1e-9 per key.
- Noise, minibatches and dropout come from a counter-based generator (`data.counter_random`), not a stateful one, so
  that a run can resume at any update; the distributions are the release's.
- Evaluation episodes and their noise are seeded; the release draws them afresh.
- Logged gradient norms are 2-norms over each network, not the release's sum of per-array norms.
- Query, key and value are one matrix; their weights, decay and initialisation are the release's.
- Gradient clipping, off by default, multiplies by clip / (norm + 1e-6), as torch does; the release has no 1e-6.
- The "sign" form of the temperature uses expm1 and log1p, exact near 0 where exp(x) - 1 loses digits.
- LayerNorm computes the variance of x - mean, as torch does; the release computes E[x^2] - E[x]^2. They differ by
  rounding.
- Softmax, entropy, values and targets are float32 even where the rest is bfloat16, which is too coarse for them.
- Without entropy control there is no temperature; the release has an unused one.
- Entropy targets that no attention can reach (ln n and above) are rejected; the release accepts them.
- The release's optimizer "adam" is AdamW with ``weight_decay`` 0.
- With extraction "implicit" the unused one-step policy keeps its initial weights; in the release they decay.

Beyond paper and release, and off by default: n-step returns and action chunks (`data.windows`), a separate learning
rate for temperatures, targets that move over training (`nn.temperature.TargetSchedule`), values learned by
classification (`nn.value_loss.HLGauss`), soft cap, clipped softmax and gated attention. The release lacks the variants
that the paper compares with; `docs/variants.md` says how each is implemented here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from tql_lightning.algorithms import losses
from tql_lightning.algorithms.critics import (
    CriticFit,
    critic_groups,
    entropy_inputs,
    fit_critic,
    frozen_values,
    make_temperature,
    move_target,
    require_target_settings,
)
from tql_lightning.algorithms.flow_matching import distill, flow_matching_loss
from tql_lightning.batch import Batch, Draw
from tql_lightning.nn.critic import Critic, TransformerCritic, make_critic
from tql_lightning.nn.dropout import without_dropout
from tql_lightning.nn.policy import Actor, FlowPolicy
from tql_lightning.nn.policy_extraction import EXTRACTIONS, Extraction, flow_actor
from tql_lightning.nn.temperature import AttentionTemperature, EntropyControl
from tql_lightning.nn.value_loss import Bootstrap, SquaredError, ValueLoss
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.distributed import identity
from tql_lightning.training.execution import Execution
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import Optimisation, ParameterGroup
from tql_lightning.training.problem import Problem
from tql_lightning.training.update import Inputs, Losses, collected

OPTIMISATION = Optimisation(
    learning_rate=1e-4,
    learning_rates={"actor": 5e-4},
    weight_decay=0.01,
    lr_schedule="warmup_cosine",
    warmup_updates=10_000,
)


class TQLNoise(NamedTuple):
    """Random numbers of one update, passed in so that the losses are pure functions.

    Attributes:
        next_action: z' ~ N(0, I) of the one-step policy at s', (..., B, n_a); with extraction "implicit" that of the N
            behaviour actions at s', (..., B, N, n_a).
        flow_x0: x_0 ~ N(0, I), start of the behaviour flow, (..., B, n_a).
        flow_t: t ~ U[0, 1), time of the behaviour flow, (..., B, 1).
        distillation: z ~ N(0, I), shared by student, teacher and the Q term, (..., B, n_a); unused by "implicit".
        metric: z ~ N(0, I) of the logged action error, without effect on training, (..., B, n_a); unused by "implicit".
    """

    next_action: Tensor
    flow_x0: Tensor
    flow_t: Tensor
    distillation: Tensor
    metric: Tensor


class TQL(Algorithm):
    """Transformer Q-Learning: flow actor, transformer critic, attention entropy held near a target.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI).
        critic: Makes the critic from (observation_dim, action_dim).
        policy: Makes the flow policy from (observation_dim, action_dim).
        entropy_control: Makes the attention temperatures from (num_layers, num_tokens) of the critic:
            ``AttentionTemperature`` (TQL), ``SingleTemperature`` or ``FixedPenalty``; null for no entropy control.
            Has no effect on a critic without attention.
        value_loss: Makes the TD loss from the range of discounted returns: ``SquaredError`` (TQL) or ``HLGauss``.
        problem: Length of a decision and ranges of rewards (taken from the data by the CLI).
        discount: Gamma, by which a reward one environment step later counts less.
        tau: Share of the critic that moves into the target critic at each update.
        target_aggregation: Aggregation over the target critic's heads in the TD target.
        bc_coefficient: Weight of the distillation loss (alpha_BC, the release's ``alpha``).
        normalize_q_loss: Whether to divide the policy's Q loss by the mean |Q|.
        extraction: How actions are chosen. "fql" takes the one-step policy's action, "best_of_n" the best of
            ``policy.num_samples`` behaviour actions by the smallest head, and "behaviour_flow" a behaviour action;
            these three train alike. "implicit" acts as "best_of_n", trains only critic and behaviour flow, and chooses
            the action at s' in the TD target in the same way.
        optimisation: Learning rates of critic, temperature and actor, schedule, weight decay and clipping. A
            temperature's rate above the critic's lets it react before a fast critic's attention collapses.
        execution: Compilation, CUDA graphs and the precision of matrix products.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Examples:
        >>> from functools import partial
        >>> from tql_lightning import TQL, TransformerCritic
        >>> model = TQL(3, 1, critic=partial(TransformerCritic, hidden_dim=32), bc_coefficient=1.0)
        >>> noise = torch.zeros(2, *model.actor().noise_shape)
        >>> model(torch.zeros(2, 3), noise).shape
        torch.Size([2, 1])
    """

    Noise = TQLNoise

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        critic: Callable[[int, int], Critic] = TransformerCritic,
        policy: Callable[[int, int], FlowPolicy] = FlowPolicy,
        entropy_control: Callable[[int, int], EntropyControl] | None = AttentionTemperature,
        value_loss: Callable[[tuple[float, float] | None], ValueLoss] = SquaredError,
        problem: Problem = Problem(),  # noqa: B008  (never changed)
        discount: float = 0.99,
        tau: float = 0.005,
        target_aggregation: Literal["mean", "min"] = "mean",
        bc_coefficient: float = 300.0,
        normalize_q_loss: bool = False,
        extraction: Extraction = "fql",
        optimisation: Optimisation = OPTIMISATION,
        execution: Execution = Execution(),  # noqa: B008  (never changed)
    ) -> None:
        super().__init__(observation_dim, action_dim, problem=problem, optimisation=optimisation, execution=execution)
        require_target_settings(discount, tau)
        require("bc_coefficient", 0.0 <= bc_coefficient < math.inf, "a finite number of at least 0", bc_coefficient)
        require("target_aggregation", target_aggregation in ("mean", "min"), "mean or min", target_aggregation)
        require("extraction", extraction in EXTRACTIONS, " or ".join(EXTRACTIONS), extraction)
        self.save_hyperparameters()

        self.value_loss = value_loss(problem.return_range(discount))
        self.critic = make_critic(critic, observation_dim, action_dim, self.value_loss)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.policy = policy(observation_dim, action_dim)
        self.trains_one_step_policy = extraction != "implicit"
        self.policy.one_step_policy.requires_grad_(self.trains_one_step_policy)
        self.temperature = make_temperature(entropy_control, self.critic)

        self.discount, self.tau = discount, tau
        self.target_aggregation: Literal["mean", "min"] = target_aggregation
        self.bc_coefficient, self.normalize_q_loss = bc_coefficient, normalize_q_loss
        self.extraction: Extraction = extraction

    def noise_draws(self) -> dict[str, Draw]:
        """Returns the draws of `TQLNoise`."""
        normal = Draw("normal", (self.action_dim,))
        candidates = Draw("normal", (self.policy.num_samples, self.action_dim))
        return {
            "next_action": normal if self.trains_one_step_policy else candidates,
            "flow_x0": normal,
            "flow_t": Draw("uniform", (1,)),
            "distillation": normal,
            "metric": normal,
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """Returns critic, temperatures and both policy networks; with "implicit" no one-step policy."""
        return [*critic_groups(self.critic, self.temperature), ParameterGroup("actor", self.policy)]

    def inputs(self, update: int) -> Inputs:
        """Returns the entropy targets at the update."""
        return entropy_inputs(self.temperature, update)

    # ------------------------------------------------------------------ one update (section 6 of docs/algorithm.md)

    def losses(
        self,
        batch: Batch,
        noise: TQLNoise,
        inputs: Inputs,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Computes everything TQL minimises; see `Algorithm.losses`.

        One side effect: with sigma-Reparam, each of the critic's two passes updates its buffers in training.
        """
        fit = self.critic_loss(batch, noise, inputs, with_metrics, whole_mean)
        actor_loss, actor_metrics = self.actor_loss(batch, noise, whole_mean)
        metrics = fit.metrics | actor_metrics
        if with_metrics and self.trains_one_step_policy:
            with torch.no_grad():
                sampled = self.one_step_actions(batch.observations, noise.metric)
                metrics["action_error"] = (sampled - batch.actions).square().mean()
        return collected(fit.loss + actor_loss, metrics, fit.diagnostics, with_metrics)

    def critic_loss(
        self, batch: Batch, noise: TQLNoise, inputs: Inputs, with_metrics: bool, whole_mean: Callable[[Tensor], Tensor]
    ) -> CriticFit:
        """Computes TD, entropy and temperature loss; y = r + discount * mask * aggregate_k Q_target,k(s', a')."""
        with torch.no_grad():
            next_actions = self.next_actions(batch.next_observations, noise.next_action)
            following = self.target_critic(batch.next_observations, next_actions).at_least_float32()
            discounts, aggregation = self.discount * batch.masks, self.target_aggregation
            bootstrap = Bootstrap(batch.rewards, discounts, following.values, following.logits, aggregation)
            target = losses.td_target(batch.rewards, batch.masks, following.values, self.discount, aggregation)
        with_entropy = self.temperature is not None or with_metrics
        output = self.critic(batch.observations, batch.actions, with_entropy=with_entropy)
        td_loss = partial(self.value_loss.bootstrapped, bootstrap=bootstrap)
        return fit_critic(output, target, td_loss, self.temperature, inputs, whole_mean)

    def next_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Computes the actions a' of the TD target: clip(mu(s', z')); with "implicit" the best of N behaviour actions.

        The online critic's smallest head chooses, without dropout, as in acting and in the release. The target critic
        then scores the chosen action.
        """
        if self.trains_one_step_policy:
            return self.one_step_actions(observations, noise)
        with without_dropout(self.critic):
            return self.policy.best_flow_actions(self.critic, observations, noise)

    def actor_loss(
        self, batch: Batch, noise: TQLNoise, whole_mean: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes behaviour flow + bc_coefficient * distillation + Q term (with "implicit" the first), and metrics."""
        # Behaviour flow: v(s, x_t, t) regresses onto x_1 - x_0
        x0, t = noise.flow_x0, noise.flow_t
        behaviour_flow_loss = flow_matching_loss(self.policy, batch.observations, batch.actions, x0, t)

        if not self.trains_one_step_policy:
            return behaviour_flow_loss, {"actor_loss": behaviour_flow_loss, "behaviour_flow_loss": behaviour_flow_loss}

        # Distillation: the one-step policy follows the flow from the same noise
        student, distillation_loss = distill(self.policy, batch.observations, noise.distillation, t)

        # Q term: the frozen online critic at the one-step policy's action; divided by the batch's mean |Q| on request
        policy_values = frozen_values(self.critic, batch.observations, student.clamp(-1.0, 1.0))
        q_scale = whole_mean(losses.q_scale(policy_values)) if self.normalize_q_loss else None
        q_loss = losses.q_loss(policy_values, q_scale)

        actor_loss = behaviour_flow_loss + self.bc_coefficient * distillation_loss + q_loss
        return actor_loss, {
            "actor_loss": actor_loss,
            "behaviour_flow_loss": behaviour_flow_loss,
            "distillation_loss": distillation_loss,
            "q_loss": q_loss,
            "policy_q_mean": policy_values.mean(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the checkpoint's progress; see `Algorithm.on_load_checkpoint`.

        Raises:
            ValueError: The checkpoint's run trained other policy networks.
        """
        super().on_load_checkpoint(checkpoint)
        fits = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        for state in checkpoint.get("optimizer_states", []) if fits else []:
            of_policy = [group for group in state["param_groups"] if str(group.get("name")).startswith("actor")]
            trained = sum(len(group["params"]) for group in of_policy)
            own = sum(len(group.parameters()) for group in self.parameter_groups() if group.name == "actor")
            if of_policy and trained != own:
                remedy = "implicit" if trained < own else "fql or best_of_n"
                raise ValueError(
                    f"model.extraction: expected {remedy}, as the checkpoint trained {trained} tensors of the policy, "
                    f"found {self.extraction}, which trains {own}; continue with {remedy}, or start a new run"
                )

    def before_step(self, inputs: Inputs) -> None:
        """Target <- tau * critic + (1 - tau) * target, with the critic as it is before its gradient step."""
        move_target(self.target_critic, self.critic, self.tau)

    # ------------------------------------------------------------------ acting (section 5 of docs/algorithm.md)

    def actor(self, extraction: str | None = None) -> Actor:
        """Returns the policy as a pure function of observations and noise; see `Algorithm.actor`.

        Raises:
            ValueError: The extraction is unknown, or is "fql" for a model trained with "implicit".
        """
        chosen = extraction or self.extraction
        if chosen == "fql" and not self.trains_one_step_policy:
            known = "best_of_n or implicit or behaviour_flow, since model.extraction=implicit trains no one-step policy"
            raise ValueError(f"extraction: expected {known}, found fql")
        return flow_actor(chosen, self.policy, self.critic, self.action_chunk)

    def one_step_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """clip(mu(s, z), -1, 1): (B, n_s), (B, n_a) -> (B, n_a)."""
        return self.policy.one_step_actions(observations, noise).clamp(-1.0, 1.0)
