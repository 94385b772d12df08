"""ReBRAC (Tarasov et al. 2023, arXiv 2305.09836): TD3+BC whose actor and critics are held to the log apart.

What its paper adds to TD3+BC: a penalty of the critics beside the actor's, each with a weight of its own, and
layer normalisation in the critics. Widths and the target networks' update are the settings', as for every
learner.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.policies.batchrl_mtf import Critics
from training.policies.learner import Batch
from training.policies.networks import StateMLP
from training.policies.td3 import TD3


class NormedMLP(StateMLP):
    """The ReLU MLP of (s, x), each hidden layer's units normalised."""

    def __init__(self, state: int, beside: int, hidden: tuple[int, ...], out: int) -> None:
        super().__init__(state, beside, hidden, out)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in hidden)

    def forward(self, s: Tensor, x: Tensor, fixed: bool = False) -> Tensor:
        """s [B, d] and x [B, w] to [B, out]."""
        h = torch.cat([s, x], dim=1)
        *hidden, last = self.layers
        for layer, norm in zip(hidden, self.norms, strict=True):
            h = norm(F.relu(F.linear(h, *_parameters(layer, fixed))))
        return F.linear(h, *_parameters(last, fixed))


def _parameters(layer: nn.Linear, fixed: bool) -> tuple[Tensor, Tensor]:
    """Its own, or without gradients."""
    return (layer.weight.detach(), layer.bias.detach()) if fixed else (layer.weight, layer.bias)


class NormedCritics(Critics):
    """Q_1 and Q_2."""

    def __init__(self, state: int, action: int, hidden: tuple[int, ...]) -> None:
        super().__init__(state, action, hidden)
        self.q = nn.ModuleList(NormedMLP(state, action, hidden, 1) for _ in range(2))


class ReBRAC(TD3):
    """π(s) = tanh(MLP(s)); both penalties are squared distances, summed over an action's entries."""

    kind = "rebrac"

    def make_critics(self, d: int, k: int) -> Critics:
        return NormedCritics(d, k, self.settings.critic_hidden)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, ...]:
        """Σ_j mean (y − Q_j(s, a))², y = r + γ (1 − done) (min_j Q'_j(s', a') − β₂ ‖a' − â'‖²).

        â' is what was served at s'. Then Q [2, B] and y [B].
        """
        with torch.no_grad():
            next_a = self.smoothed(batch.next_s)
            served = self.data.next_actions.index_select(0, batch.rows)
            penalty = self.settings.rebrac.critic_weight * (next_a - served).square().sum(dim=1)
            next_q = self.target_critics(batch.next_s, next_a).amin(dim=0) - penalty
            y = batch.r + self.settings.gamma * (1.0 - batch.done) * next_q
        q = self.critics(batch.s, batch.a)
        return (y - q).square().mean(dim=1).sum(), q, y

    def actor_loss(self, batch: Batch) -> Tensor:
        """mean β₁ ‖π(s) − a‖² − λ min_j Q_j(s, π(s)), λ = 1 / mean |min_j Q_j(s, π(s))|."""
        a = torch.tanh(self.policy(batch.s))
        q = torch.stack([q(batch.s, a, fixed=True).squeeze(1) for q in self.critics.q]).amin(dim=0)
        imitation = (a - batch.a).square().sum(dim=1).mean()
        return self.settings.rebrac.actor_weight * imitation - q.mean() / q.detach().abs().mean()
