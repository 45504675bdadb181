"""Interface of critics, TQL's transformer critic and FQL's MLP critic (section 2 of docs/algorithm.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tql_lightning.nn.initialisation import LayerNorm, lecun_normal_
from tql_lightning.nn.mlp import MLP
from tql_lightning.nn.number_types import at_least_float32
from tql_lightning.nn.sizes import require_heads, require_sizes
from tql_lightning.nn.tokenizer import ScalarTokenizer
from tql_lightning.nn.transformer import Block, Norm, Transformer, TransformerBlock
from tql_lightning.nn.value_loss import ValueLoss
from tql_lightning.nn.weight_decay import is_decaying_matrix


class CriticOutput(NamedTuple):
    """Output of a critic.

    Attributes:
        values: Q_k(s, a) of every ensemble member, (B, E).
        attention_entropy: Mean entropy in nats per layer (rows) of the [VALUE] query (column 0) and of the other
            queries (column 1), (L, 2); None unless requested, or for a critic without attention.
        logits: Logits of the bins whose mean is the value, (B, E, M); None for a critic without bins.

    Examples:
        >>> CriticOutput(values=torch.zeros(5, 2), attention_entropy=None).values.mean()
        tensor(0.)
    """

    values: Tensor
    attention_entropy: Tensor | None
    logits: Tensor | None = None

    def at_least_float32(self) -> CriticOutput:
        """Converts all tensors to the number type of losses; see `number_types.at_least_float32`."""
        entropy, logits = (None if tensor is None else at_least_float32(tensor) for tensor in self[1:])
        return CriticOutput(at_least_float32(self.values), entropy, logits)


class Critic(nn.Module, ABC):
    """A value function Q(s, a). Subclass it to plug in your own: ``--model.critic=your_module.YourCritic``.

    The constructor's first two arguments are ``observation_dim`` and ``action_dim``. Weight decay applies
    to the parameters for which ``decays`` is true. A critic that can also be trained by classification takes
    ``support``, the centres of the bins to give logits for, as a keyword.

    Attributes:
        num_layers: L, number of attention layers; 0 for a critic without attention.
        num_tokens: n, number of keys of a query; ln n is the largest entropy.

    Examples:
        >>> class LinearCritic(Critic):
        ...     def __init__(self, observation_dim, action_dim):
        ...         super().__init__()
        ...         self.head = nn.Linear(observation_dim + action_dim, 2)
        ...
        ...     def forward(self, observations, actions, *, with_entropy=False):
        ...         return CriticOutput(self.head(torch.cat([observations, actions], dim=-1)), None)
        >>> LinearCritic(3, 1)(torch.zeros(5, 3), torch.zeros(5, 1)).values.shape
        torch.Size([5, 2])
    """

    num_layers: int = 0
    num_tokens: int = 1

    @abstractmethod
    def forward(self, observations: Tensor, actions: Tensor, *, with_entropy: bool = False) -> CriticOutput:
        """Computes values of observation-action pairs.

        Args:
            observations: (B, n_s).
            actions: (B, n_a) in [-1, 1].
            with_entropy: Whether to compute attention entropies.
        """

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to a parameter; by default to matrices, except those that a layer exempts."""
        return is_decaying_matrix(self, name, parameter)


class Bins(nn.Module):
    """Turns outputs of heads into values: the outputs themselves, or the mean over bins with these logits.

    Args:
        support: Centres of M bins; None for heads that output values.
    """

    centres: Tensor | None

    def __init__(self, support: list[float] | None) -> None:
        super().__init__()
        self.num_outputs = 1 if support is None else len(support)
        centres = None if support is None else torch.tensor(support, dtype=torch.float32)
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, outputs: Tensor, attention_entropy: Tensor | None) -> CriticOutput:
        """Turns outputs of the heads, (B, E, M) or (B, E, 1), into the critic's output."""
        if self.centres is None:
            return CriticOutput(outputs.squeeze(-1), attention_entropy)
        # No matrix product: autocast would round values to bfloat16.
        values = (at_least_float32(outputs).softmax(dim=-1) * self.centres).sum(dim=-1)
        return CriticOutput(values, attention_entropy, outputs)


class TransformerCritic(Critic):
    """Transformer over one token per scalar of (s, a); E heads read the [VALUE] token from a shared trunk.

    Sizes in the paper: hidden_dim 128, 256, 512, 1024 are 0.4 M, 1.7 M, 6.6 M and 26 M parameters.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a (taken from the dataset by the CLI).
        hidden_dim: H, a multiple of ``head_dim``.
        num_layers: L.
        head_dim: Size of an attention head; there are hidden_dim / head_dim heads.
        mlp_ratio: Width of the feed-forward layers over ``hidden_dim``.
        num_critics: E, heads of the value ensemble.
        dropout: Probability of dropout inside the blocks.
        modality_embeddings: Whether to add a learned embedding to all observation tokens, and one to all action tokens.
        norm: Makes every normalisation of tokens, e.g. ``RMSNorm``.
        block: Makes a block from (hidden_dim, num_heads, inner width, dropout, norm).
        weight_parametrisation: Makes, from a linear layer of a block, the function from the stored weight to the
            effective one, e.g. ``SigmaReparam``; null for the stored weight.
        support: Centres of the bins (given by the model's ``value_loss``); null for a critic without bins.

    Raises:
        ValueError: A size is not positive, ``hidden_dim`` is below 2 or not a multiple of ``head_dim``, or ``dropout``
            is not in [0, 1).

    Examples:
        >>> critic = TransformerCritic(3, 1, hidden_dim=32)
        >>> output = critic(torch.zeros(5, 3), torch.zeros(5, 1), with_entropy=True)
        >>> output.values.shape, output.attention_entropy.shape
        (torch.Size([5, 2]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dim: int = 256,
        num_layers: int = 2,
        head_dim: int = 32,
        mlp_ratio: int = 4,
        num_critics: int = 2,
        dropout: float = 0.0,
        modality_embeddings: bool = True,
        norm: Norm = LayerNorm,
        block: Block = TransformerBlock,
        weight_parametrisation: Callable[[nn.Linear], nn.Module] | None = None,
        support: list[float] | None = None,
    ) -> None:
        super().__init__()
        require_sizes(
            "critic",
            observation_dim=observation_dim,
            action_dim=action_dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            head_dim=head_dim,
            mlp_ratio=mlp_ratio,
            num_critics=num_critics,
        )
        if hidden_dim < 2:
            raise ValueError(f"critic.hidden_dim: expected at least 2, found {hidden_dim}; the heads halve it")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"critic.dropout: expected at least 0 and below 1, found {dropout}")
        require_heads(hidden_dim, head_dim)
        self.num_layers, self.hidden_dim = num_layers, hidden_dim
        self.tokenizer = ScalarTokenizer(observation_dim, action_dim, hidden_dim, modality_embeddings)
        self.num_tokens = self.tokenizer.num_tokens
        self.transformer = Transformer(
            hidden_dim,
            hidden_dim // head_dim,
            num_layers,
            mlp_ratio * hidden_dim,
            dropout,
            norm,
            block,
            weight_parametrisation,
        )
        self.bins = Bins(support)
        self.heads = nn.ModuleList(
            nn.Sequential(
                lecun_normal_(nn.Linear(hidden_dim, hidden_dim // 2)),
                nn.ReLU(),
                lecun_normal_(nn.Linear(hidden_dim // 2, self.bins.num_outputs)),
            )
            for _ in range(num_critics)
        )

    def forward(self, observations: Tensor, actions: Tensor, *, with_entropy: bool = False) -> CriticOutput:
        """See `Critic.forward`; values (B, E), attention entropy (L, 2)."""
        value, entropy = self.transformer(self.tokenizer(observations, actions), with_entropy=with_entropy)
        outputs = torch.stack([head(value) for head in self.heads], dim=1)
        output: CriticOutput = self.bins(outputs, None if entropy is None else token_group_means(entropy))
        return output

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Decays matrices, except the tokenizer's: input projections, positions, embeddings and [VALUE]."""
        return is_decaying_matrix(self, name, parameter) and not name.startswith("tokenizer.")


class MLPCritic(Critic):
    """The critic of FQL: E independent MLPs over the concatenated observation and action.

    Args:
        observation_dim: n_s (taken from the dataset by the CLI).
        action_dim: n_a (taken from the dataset by the CLI).
        hidden_dims: Sizes of the hidden layers.
        num_critics: E, members of the ensemble.
        layer_norm: Whether hidden layers end in a LayerNorm.
        support: Centres of the bins (given by the model's ``value_loss``); null for a critic without bins.

    Raises:
        ValueError: A size is not positive, or there is no hidden layer.

    Examples:
        >>> critic = MLPCritic(3, 1, hidden_dims=[32, 32])
        >>> critic(torch.zeros(5, 3), torch.zeros(5, 1)).values.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (512, 512, 512, 512),
        num_critics: int = 2,
        layer_norm: bool = True,
        support: list[float] | None = None,
    ) -> None:
        super().__init__()
        require_sizes("critic", observation_dim=observation_dim, action_dim=action_dim, num_critics=num_critics)
        self.bins = Bins(support)
        self.members = nn.ModuleList(
            MLP(observation_dim + action_dim, hidden_dims, self.bins.num_outputs, layer_norm)
            for _ in range(num_critics)
        )

    def forward(self, observations: Tensor, actions: Tensor, *, with_entropy: bool = False) -> CriticOutput:
        """See `Critic.forward`; an MLP has no attention, so its entropy is always None."""
        inputs = torch.cat([observations, actions], dim=-1)
        output: CriticOutput = self.bins(torch.stack([member(inputs) for member in self.members], dim=1), None)
        return output


def make_critic(critic: Callable[..., Critic], observation_dim: int, action_dim: int, value_loss: ValueLoss) -> Critic:
    """Makes a critic for a value loss, and passes it ``support`` only if the loss has bins.

    Raises:
        ValueError: The value loss has bins, and the critic takes no ``support``.
    """
    if value_loss.support is None:
        return critic(observation_dim, action_dim)
    parameters = signature(critic).parameters
    if "support" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        name = getattr(critic, "__qualname__", repr(critic))
        raise ValueError(
            f"model.critic: value_loss {type(value_loss).__name__} needs a critic that takes support; {name} does not"
        )
    return critic(observation_dim, action_dim, support=value_loss.support)


def token_group_means(entropy: Tensor) -> Tensor:
    """Entropies of all queries (L, B, h, n) -> (L, 2): means over [VALUE] and over the other queries."""
    per_query = entropy.mean(dim=(1, 2))
    return torch.stack([per_query[:, 0], per_query[:, 1:].mean(dim=-1)], dim=-1)
