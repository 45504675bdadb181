"""Transformer Q-Learning (TQL, arXiv 2602.01439): the algorithm, read from top to bottom.

`TQL.losses` is everything it minimises, equation by equation; the functions it calls stand in `algorithms.losses` and
`algorithms.critics`. All losses are taken at the old parameters and summed, one gradient step is made, and the target
critic moves towards the critic as it was BEFORE that step.

Deviations from paper and release, and why:

- One AdamW with parameter groups instead of one optimizer per network: the same update, bit for bit, but a
  global step counts once, and distributed training needs no search for unused parameters.
- The last transformer block computes only what the [VALUE] token needs, the first takes its tokens as factors. Exact
  but for rounding; see `nn.attention`, `nn.scalar_tokens`.
- Attention entropy is -sum p log_softmax, where the release clips p at 1e-9 inside the logarithm: they
  differ by less than 1e-9 per key.
- Noise, minibatches and dropout come from a counter (`data.counter_random`), not from a generator that runs on, so that
  a run can be resumed at any update; the distributions are the release's.
- Evaluation episodes and their noise are seeded; the release draws them afresh.
- Logged gradient norms are 2-norms over each network, not the release's sum of per-array norms.
- Query, key and value are one matrix; their weights, decay and initialisation are the release's.
- Gradient clipping, which is off by default, multiplies by clip / (norm + 1e-6), torch's own; the release has no 1e-6.
- The "sign" form of the temperature is written with expm1 and log1p, exact near 0 where exp(x) - 1 loses digits.
- LayerNorm takes the variance of x - mean, torch's own, where the release takes E[x^2] - E[x]^2: rounding apart.
- Softmax, entropy, values and targets are float32 also where the rest is bfloat16, which is too coarse for them.
- Without entropy control there is no temperature; the release has one that nothing uses.
- Entropy targets that no attention can reach (ln n and above) are refused; the release runs with them.
- The release's optimizer "adam" is AdamW with ``weight_decay`` 0.
- With extraction "implicit" the one-step policy stays as it started; in the release weight decay shrinks it, unused.

Beyond paper and release, and off by default: n-step returns and action chunks (`data.windows`), a learning rate of the
temperatures' own, targets that move over training (`nn.temperature.TargetSchedule`), values learned by classification
(`nn.value_loss.HLGauss`), soft cap, clipped softmax and gated attention. What the paper compares with is not in its
release; `docs/variants.md` says how each is read here.
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
)
from tql_lightning.algorithms.flow_matching import distill
from tql_lightning.batch import Batch, Draw
from tql_lightning.nn.critic import Critic, TransformerCritic, make_critic
from tql_lightning.nn.dropout import without_dropout
from tql_lightning.nn.policy import Actor, FlowPolicy
from tql_lightning.nn.policy_extraction import EXTRACTIONS, Extraction, flow_actor
from tql_lightning.nn.temperature import AttentionTemperature, EntropyControl
from tql_lightning.nn.value_loss import Bootstrap, SquaredError, ValueLoss, return_range
from tql_lightning.training.algorithm import Algorithm
from tql_lightning.training.distributed import identity
from tql_lightning.training.execution import Execution
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import Optimisation, ParameterGroup
from tql_lightning.training.update import Inputs, Losses

OPTIMISATION = Optimisation(
    learning_rate=1e-4,
    learning_rates={"actor": 5e-4},
    weight_decay=0.01,
    lr_schedule="warmup_cosine",
    warmup_updates=10_000,
)


class TQLNoise(NamedTuple):
    """Every random number that one update uses, so that the losses are pure functions.

    Attributes:
        next_action: z' ~ N(0, I) of the one-step policy at s', (..., B, n_a); with extraction "implicit" of the N
            behaviour actions at s', (..., B, N, n_a).
        flow_x0: x_0 ~ N(0, I), start of the behaviour flow, (..., B, n_a).
        flow_t: t ~ U[0, 1), time of the behaviour flow, (..., B, 1).
        distillation: z ~ N(0, I), shared by student, teacher and the Q term, (..., B, n_a); unused by "implicit".
        metric: z ~ N(0, I) of the logged action error, no influence on training, (..., B, n_a); likewise.
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
        action_dim: n_a of one decision (taken from the dataset by the CLI): ``action_chunk`` times the environment's.
        critic: Makes the critic from (observation_dim, action_dim).
        policy: Makes the flow policy from (observation_dim, action_dim).
        entropy_control: Makes the attention temperatures from (num_layers, num_tokens) of the critic:
            ``AttentionTemperature`` (TQL), ``SingleTemperature`` or ``FixedPenalty``; null leaves the entropy alone.
            Without effect for a critic that has no attention.
        value_loss: Makes the TD loss from the range of discounted returns: ``SquaredError`` (TQL) or ``HLGauss``.
        reward_range: Smallest and largest reward of transitions that continue (taken from the dataset by the CLI).
        final_reward_range: The same of transitions that terminate; null if none does.
        action_chunk: h, environment steps that one decision is made of (taken from the data by the CLI).
        discount: gamma.
        tau: Share of the critic that moves into the target critic at each update.
        target_aggregation: Over the heads of the target critic, in the TD target.
        bc_coefficient: Weight of the distillation loss (alpha_BC, the release's ``alpha``).
        normalize_q_loss: Divide the policy's Q loss by the mean |Q|.
        extraction: How actions are chosen. "fql" takes the one-step policy's, "best_of_n" the best of
            ``policy.num_samples`` behaviour actions by the smallest head, "behaviour_flow" clones; these three train
            alike. "implicit" acts as "best_of_n" and trains critic and behaviour flow only, with such an action at s'
            in the TD target.
        optimisation: Learning rates of critic, temperature and actor, schedule, weight decay and clipping. A
            temperature's rate above the critic's lets it answer before a fast critic has collapsed.
        execution: Compilation, CUDA graphs and the precision of matrix products.

    Raises:
        ValueError: A setting is out of its range; the message names it.

    Example:
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
        reward_range: tuple[float, float] | None = None,
        final_reward_range: tuple[float, float] | None = None,
        action_chunk: int = 1,
        discount: float = 0.99,
        tau: float = 0.005,
        target_aggregation: Literal["mean", "min"] = "mean",
        bc_coefficient: float = 300.0,
        normalize_q_loss: bool = False,
        extraction: Extraction = "fql",
        optimisation: Optimisation = OPTIMISATION,
        execution: Execution = Execution(),  # noqa: B008  (never changed)
    ) -> None:
        super().__init__(
            observation_dim, action_dim, action_chunk=action_chunk, optimisation=optimisation, execution=execution
        )
        require("discount", 0.0 <= discount <= 1.0, "between 0 and 1", discount)
        require("tau", 0.0 < tau <= 1.0, "above 0 and at most 1", tau)
        require("bc_coefficient", 0.0 <= bc_coefficient < math.inf, "a finite number of at least 0", bc_coefficient)
        require("target_aggregation", target_aggregation in ("mean", "min"), "mean or min", target_aggregation)
        require("extraction", extraction in EXTRACTIONS, " or ".join(EXTRACTIONS), extraction)
        self.save_hyperparameters()

        self.value_loss = value_loss(return_range(reward_range, final_reward_range, discount))
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
        """See `TQLNoise`."""
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
        """Critic, temperatures, and both policy networks; with extraction "implicit" the behaviour flow alone."""
        return [*critic_groups(self.critic, self.temperature), ParameterGroup("actor", self.policy)]

    def inputs(self, update: int) -> Inputs:
        """Entropy targets at the update."""
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
        """Everything TQL minimises; see `Algorithm.losses`.

        One side effect: where sigma-Reparam is used, each of the critic's two passes moves its buffers in training.
        """
        fit = self.critic_loss(batch, noise, inputs, with_metrics, whole_mean)
        actor_loss, actor_metrics = self.actor_loss(batch, noise, whole_mean)
        total = fit.loss + actor_loss
        if not with_metrics:
            return Losses(total, {}, fit.diagnostics)
        metrics = fit.metrics | actor_metrics
        if self.trains_one_step_policy:
            with torch.no_grad():
                sampled = self.one_step_actions(batch.observations, noise.metric)
                metrics["action_error"] = (sampled - batch.actions).square().mean()
        return Losses(total, {name: value.detach() for name, value in metrics.items()}, fit.diagnostics)

    def critic_loss(
        self, batch: Batch, noise: TQLNoise, inputs: Inputs, with_metrics: bool, whole_mean: Callable[[Tensor], Tensor]
    ) -> CriticFit:
        """TD, entropy and temperature loss; y = r + discount * mask * aggregate Q_target(s', `next_actions`)."""
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
        """Actions a' of the TD target: clip(mu(s', z')); with "implicit" the best of N behaviour actions.

        The online critic's smallest head chooses, without dropout, as in acting and in the release; the target critic
        then gives the value of the action chosen.
        """
        if self.trains_one_step_policy:
            return self.one_step_actions(observations, noise)
        with without_dropout(self.critic):
            return self.policy.best_flow_actions(self.critic, observations, noise)

    def actor_loss(
        self, batch: Batch, noise: TQLNoise, whole_mean: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Behaviour flow + bc_coefficient * distillation + Q term, and what is logged; of "implicit" the first only."""
        # Behaviour flow: v(s, x_t, t) regresses onto x_1 - x_0
        x_t = losses.flow_interpolation(noise.flow_x0, batch.actions, noise.flow_t)
        velocity = self.policy.velocity(batch.observations, x_t, noise.flow_t)
        behaviour_flow_loss = losses.behaviour_flow_loss(velocity, noise.flow_x0, batch.actions)

        if not self.trains_one_step_policy:
            return behaviour_flow_loss, {"actor_loss": behaviour_flow_loss, "behaviour_flow_loss": behaviour_flow_loss}

        # Distillation: the one-step policy follows the flow from the same noise
        student, distillation_loss = distill(self.policy, batch.observations, noise.distillation, noise.flow_t)

        # Q term: the online critic, held fixed, at the one-step policy's action; over the batch's mean |Q| on request
        policy_values = self.frozen_critic_values(batch.observations, student.clamp(-1.0, 1.0))
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

    def frozen_critic_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Online critic's values (B, E) whose gradient reaches the actions and not the critic."""
        return frozen_values(self.critic, observations, actions)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the checkpoint's progress; see `Algorithm.on_load_checkpoint`.

        Raises:
            ValueError: The checkpoint's run trained other networks of the policy.
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
        """The policy as a pure function of observations and noise; see `Algorithm.actor`.

        Raises:
            ValueError: There is no such extraction, or "fql" is asked of a model that "implicit" trained.
        """
        chosen = extraction or self.extraction
        if chosen == "fql" and not self.trains_one_step_policy:
            known = "best_of_n or implicit or behaviour_flow, since model.extraction=implicit trains no one-step policy"
            raise ValueError(f"extraction: expected {known}, found fql")
        return flow_actor(chosen, self.policy, self.critic, self.action_chunk)

    def one_step_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """clip(mu(s, z), -1, 1): (B, n_s), (B, n_a) -> (B, n_a)."""
        return self.policy.one_step_actions(observations, noise).clamp(-1.0, 1.0)

    def train(self, mode: bool = True) -> TQL:
        """Switches to training or evaluation; the target critic never drops out."""
        super().train(mode)
        self.target_critic.eval()
        return self
