"""Transformer Q-Learning (TQL, arXiv 2602.01439): the algorithm, read from top to bottom.

`TQL.update` is one update in the order of the paper's release; `TQL.losses` is everything it minimises,
equation by equation; the functions it calls stand in `tql_lightning.algorithms.losses`. All losses are taken at the old
parameters and summed, one gradient step is made, and the target critic moves towards the critic as it was
BEFORE that step.

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

Beyond paper and release, and off by default: n-step returns and action chunks (`data.windows`), a learning rate of the
temperatures' own, targets that move over training (`nn.temperature.TargetSchedule`), values learned by classification
(`nn.value_loss.HLGauss`), soft cap, clipped softmax and gated attention. What the paper compares with is not in its
release; `docs/variants.md` says how each is read here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tql_lightning.algorithms import losses
from tql_lightning.batch import Batch, Noise
from tql_lightning.nn.critic import Critic, CriticOutput, TransformerCritic, make_critic
from tql_lightning.nn.extraction import Extraction
from tql_lightning.nn.policy import Actor, FlowPolicy
from tql_lightning.nn.temperature import AttentionTemperature, EntropyControl
from tql_lightning.nn.value_loss import SquaredError, ValueLoss, return_range
from tql_lightning.training.distributed import identity
from tql_lightning.training.hyperparameters import require
from tql_lightning.training.optimisation import OptimisedLoop
from tql_lightning.training.sharding import call_with_frozen_parameters, own_shares
from tql_lightning.training.update import Losses, MatmulPrecision


class TQL(OptimisedLoop):
    """Transformer Q-Learning: flow actor, transformer critic, attention entropy held near a target.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a of one decision (taken from the dataset by the CLI): ``action_chunk`` times the environment's.
        critic: what makes the critic from (observation_dim, action_dim).
        policy: what makes the flow policy from (observation_dim, action_dim).
        entropy_control: what makes the attention temperatures from (num_layers, num_tokens) of the critic:
            ``AttentionTemperature`` (TQL), ``SingleTemperature`` or ``FixedPenalty``; null leaves the entropy
            alone. Without effect for a critic that has no attention.
        value_loss: what makes the TD loss from the range of discounted returns: ``SquaredError`` (TQL) or
            ``HLGauss``.
        reward_range: smallest and largest reward of transitions that continue (taken from the dataset by the CLI).
        final_reward_range: the same of transitions that terminate; null if none does.
        action_chunk: h, steps of the environment that one decision is made of (taken from the data by the CLI).
        discount: gamma.
        tau: share of the critic that moves into the target critic at each update.
        target_aggregation: over the heads of the target critic, in the TD target.
        bc_coefficient: weight of the distillation loss (alpha_BC, the release's ``alpha``).
        normalize_q_loss: divide the policy's Q loss by the mean |Q|.
        extraction: how actions are chosen: "fql" one-step policy, "implicit" best of ``num_samples``
            behaviour actions by the smallest head, "behaviour_flow" plain cloning.
        num_samples: behaviour actions that "implicit" chooses from.
        critic_learning_rate: peak learning rate of the critic.
        temperature_learning_rate: peak learning rate of the attention temperatures; null for the critic's, as in
            the release. Above the critic's, the temperatures answer before a fast critic has collapsed.
        actor_learning_rate: peak learning rate of both policy networks.
        weight_decay: of AdamW, on weight matrices only.
        lr_schedule: "warmup_cosine" or "constant".
        warmup_updates: updates of linear warm-up from 0.01 of the peak.
        schedule_updates: updates of the whole run, on which the cosine is laid out.
        gradient_clip_norm: largest 2-norm of the gradient of critic and temperatures, and on its own of
            both policy networks; null for no clipping.
        compile: compile the losses of an update (``torch.compile``, one graph). Pays on GPUs; the first update then
            takes minutes.
        cuda_graphs: record an update once as a CUDA graph, from loss to optimizer, and replay it. On one CUDA device.
            Callbacks then see gradients of the update before in ``on_before_optimizer_step``, and nobody is called at
            backward passes.
        float32_matmul_precision: of matrix products in float32 while a trainer runs: "highest" float32, "high" TF32
            on NVIDIA GPUs, "medium" bfloat16. Entropy, softmax, TD targets and temperatures stay float32.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

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
        num_samples: int = 16,
        critic_learning_rate: float = 1e-4,
        temperature_learning_rate: float | None = None,
        actor_learning_rate: float = 5e-4,
        weight_decay: float = 0.01,
        lr_schedule: Literal["warmup_cosine", "constant"] = "warmup_cosine",
        warmup_updates: int = 10_000,
        schedule_updates: int = 1_000_000,
        gradient_clip_norm: float | None = None,
        compile: bool = False,  # noqa: A002
        cuda_graphs: bool = False,
        float32_matmul_precision: MatmulPrecision = "highest",
    ) -> None:
        super().__init__(
            critic_learning_rate=critic_learning_rate,
            temperature_learning_rate=temperature_learning_rate,
            actor_learning_rate=actor_learning_rate,
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
            warmup_updates=warmup_updates,
            schedule_updates=schedule_updates,
            gradient_clip_norm=gradient_clip_norm,
            compile=compile,
            cuda_graphs=cuda_graphs,
            float32_matmul_precision=float32_matmul_precision,
        )
        divides = action_chunk >= 1 and action_dim % action_chunk == 0
        require("action_chunk", divides, f"a divisor of action_dim={action_dim}", action_chunk)
        require("discount", 0.0 <= discount <= 1.0, "between 0 and 1", discount)
        require("tau", 0.0 < tau <= 1.0, "above 0 and at most 1", tau)
        require("num_samples", num_samples >= 1, "at least 1", num_samples)
        require("bc_coefficient", 0.0 <= bc_coefficient < math.inf, "a finite number of at least 0", bc_coefficient)
        require("target_aggregation", target_aggregation in ("mean", "min"), "mean or min", target_aggregation)
        require("extraction", extraction in get_args(Extraction), " or ".join(get_args(Extraction)), extraction)
        self.save_hyperparameters()

        self.value_loss = value_loss(return_range(reward_range, final_reward_range, discount))
        self.critic = make_critic(critic, observation_dim, action_dim, self.value_loss)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.policy = policy(observation_dim, action_dim)
        self.temperature: EntropyControl | None = None
        if entropy_control is not None and self.critic.num_layers > 0:
            self.temperature = entropy_control(self.critic.num_layers, self.critic.num_tokens)

        self.observation_dim, self.action_dim, self.action_chunk = observation_dim, action_dim, action_chunk
        self.discount, self.tau = discount, tau
        self.target_aggregation: Literal["mean", "min"] = target_aggregation
        self.bc_coefficient, self.normalize_q_loss = bc_coefficient, normalize_q_loss
        self.extraction: Extraction = extraction
        self.num_samples = num_samples

    # ------------------------------------------------------------------ one update (section 6 of docs/algorithm.md)

    def update(self, batch: Batch, noise: Noise, with_metrics: bool = True) -> dict[str, Any]:
        """One update: losses at the old parameters, target critic, one gradient step.

        Args:
            batch: transitions, leading dimension (B,).
            noise: every random number of this update.
            with_metrics: whether to compute what is only logged.

        Returns:
            What callbacks are given of it; see `UpdateLoop.training_step`.
        """
        schedule: Any = self.lr_schedulers()
        target_entropy = self.target_entropy
        total, entropy, metrics = self.step(batch, noise, target_entropy, with_metrics)  # `gradient_step`, or a replay
        schedule.step()
        return {
            "loss": total,
            "metrics": metrics,
            "attention_entropy": entropy,
            "temperature": None if self.temperature is None else self.temperature().detach(),
            "target_entropy": target_entropy,
        }

    def gradient_step(
        self, batch: Batch, noise: Noise, target_entropy: Tensor | None, optimizer: Any, with_metrics: bool = True
    ) -> Losses:
        """What changes parameters in an update: gradient, target critic, optimizer's step; see `losses`."""
        optimizer.zero_grad()
        total, entropy, metrics = self.training_losses(batch, noise, target_entropy, with_metrics)
        self.backward_pass(total)
        with self.signal_guard:  # no signal comes between the two
            self.move_target()
            metrics |= self.clip_and_step(optimizer, with_norms=with_metrics)
        return total.detach(), None if entropy is None else entropy.detach(), metrics

    def losses(
        self,
        batch: Batch,
        noise: Noise,
        target_entropy: Tensor | None,
        with_metrics: bool = True,
        whole_mean: Callable[[Tensor], Tensor] = identity,
    ) -> Losses:
        """Everything TQL minimises, as a function of parameters and arguments.

        One side effect: where sigma-Reparam is used, each of the critic's two passes moves its buffers in training.

        Args:
            batch: transitions, leading dimension (B,).
            noise: every random number of this update.
            target_entropy: entropy targets (L, 2), or None.
            with_metrics: whether to compute what is only logged.
            whole_mean: turns a mean over these rows into that over the whole batch, of which other processes have
                the rest. Every other loss is a mean over rows itself, so that averaged gradients are the whole batch's.

        Returns:
            The total loss, the attention entropy (L, 2) or None, and detached scalars to log.
        """
        # TD target: a' = clip(mu(s', z')), y = r + discount * mask * aggregate Q_target(s', a')
        with torch.no_grad():
            next_actions = self.one_step_actions(batch.next_observations, noise.next_action)
            next_values = self.target_critic(batch.next_observations, next_actions).at_least_float32().values
            target = losses.td_target(batch.rewards, batch.masks, next_values, self.discount, self.target_aggregation)

        # Critic: TD loss, entropy loss (moves the critic), temperature loss (moves alpha)
        with_entropy = self.temperature is not None or with_metrics
        output = self.critic(batch.observations, batch.actions, with_entropy=with_entropy)
        values, entropy, logits = output.at_least_float32()
        td_loss = self.value_loss(values, logits, target)
        entropy_loss = temperature_loss = torch.zeros_like(td_loss)
        if self.temperature is not None:
            entropy_loss = losses.entropy_loss(entropy, self.temperature.entropy_weight())
            if target_entropy is not None:
                temperature_loss = losses.temperature_loss(entropy, self.temperature(), target_entropy)
        critic_loss = td_loss + entropy_loss + temperature_loss

        # Behaviour flow: v(s, x_t, t) regresses onto x_1 - x_0
        x_t = losses.flow_interpolation(noise.flow_x0, batch.actions, noise.flow_t)
        velocity = self.policy.velocity(batch.observations, x_t, noise.flow_t)
        behaviour_flow_loss = losses.behaviour_flow_loss(velocity, noise.flow_x0, batch.actions)

        # Distillation: the one-step policy follows the flow from the same noise
        with torch.no_grad():
            teacher = self.policy.flow_actions(batch.observations, noise.distillation)
        student = self.policy.one_step_actions(batch.observations, noise.distillation)
        distillation_loss = losses.distillation_loss(student, teacher)

        # Q term: the online critic, held fixed, at the one-step policy's action; over the batch's mean |Q| on request
        policy_values = self.frozen_critic_values(batch.observations, student.clamp(-1.0, 1.0))
        q_scale = whole_mean(losses.q_scale(policy_values)) if self.normalize_q_loss else None
        q_loss = losses.q_loss(policy_values, q_scale)
        actor_loss = behaviour_flow_loss + self.bc_coefficient * distillation_loss + q_loss

        total = critic_loss + actor_loss
        if not with_metrics:
            return total, entropy, {}
        with torch.no_grad():
            sampled = self.one_step_actions(batch.observations, noise.metric)
            metrics = {
                "critic_loss": critic_loss,
                "td_loss": td_loss,
                "entropy_loss": entropy_loss,
                "temperature_loss": temperature_loss,
                "q_mean": values.mean(),
                "q_min": values.min(),
                "q_max": values.max(),
                "target_q_mean": target.mean(),
                "actor_loss": actor_loss,
                "behaviour_flow_loss": behaviour_flow_loss,
                "distillation_loss": distillation_loss,
                "q_loss": q_loss,
                "policy_q_mean": policy_values.mean(),
                "action_error": (sampled - batch.actions).square().mean(),
            }
        return total, entropy, {name: value.detach() for name, value in metrics.items()}

    def frozen_critic_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Online critic's values (B, E) whose gradient reaches the actions and not the critic."""
        output: CriticOutput = call_with_frozen_parameters(self.critic, observations, actions)
        return output.at_least_float32().values

    @property
    def target_entropy(self) -> Tensor | None:
        """Entropy targets at the current update, (L, 2); None without control or for control without a target."""
        return None if self.temperature is None else self.temperature.target_entropy(self.current_update)

    @torch.no_grad()
    def move_target(self) -> None:
        """Target <- tau * critic + (1 - tau) * target, called before the critic's gradient step.

        Buffers (sigma-Reparam's singular vectors) are taken over whole: their mean is none.
        """
        target, critic = own_shares(self.target_critic.parameters()), own_shares(self.critic.parameters())
        torch._foreach_lerp_(target, critic, self.tau)
        for target_buffer, buffer in zip(self.target_critic.buffers(), self.critic.buffers(), strict=True):
            target_buffer.copy_(buffer)

    # ------------------------------------------------------------------ acting (section 5 of docs/algorithm.md)

    @property
    def env_action_dim(self) -> int:
        """Size of one action of the environment; a decision of the policy is ``action_chunk`` of them."""
        return self.action_dim // self.action_chunk

    def actor(self, extraction: Extraction | None = None) -> Actor:
        """The policy as a pure function of observations and noise.

        Args:
            extraction: how to choose actions; None for the model's own setting.

        Raises:
            ValueError: there is no such way.
        """
        match extraction or self.extraction:
            case "fql":
                return Actor((self.action_dim,), self.one_step_actions, self.action_chunk)
            case "implicit":
                return Actor((self.num_samples, self.action_dim), self.implicit_actions, self.action_chunk)
            case "behaviour_flow":
                return Actor((self.action_dim,), self.policy.flow_actions, self.action_chunk)
            case unknown:
                raise ValueError(f"extraction: expected {' or '.join(get_args(Extraction))}, found {unknown}")

    def one_step_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """clip(mu(s, z), -1, 1): (B, n_s), (B, n_a) -> (B, n_a)."""
        return self.policy.one_step_actions(observations, noise).clamp(-1.0, 1.0)

    def implicit_actions(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Of S behaviour actions the one with the highest smallest-head Q: (B, n_s), (B, S, n_a) -> (B, n_a)."""
        return self.policy.best_flow_actions(self.critic, observations, noise)

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Acts with the model's own extraction; see `actor` for the shape of the noise."""
        return self.actor().act(observations, noise)

    def train(self, mode: bool = True) -> TQL:
        """Switches to training or evaluation; the target critic never drops out."""
        super().train(mode)
        self.target_critic.eval()
        return self
