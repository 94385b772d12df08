"""IQL (Kostrikov et al. 2021): values by expectile regression, the actor by weighted imitation.

Q is never asked about an action that is not in the log. Equation numbers are its paper's; that all
losses of a step are of the weights before it, and the actor's Gaussian, are d3rlpy's.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.policies.batchrl_mtf import Critics
from training.policies.learner import Learner
from training.policies.networks import MLP

_LOG_STD = (-5.0, 2.0)


class GaussianPolicy(nn.Module):
    """N(tanh(MLP(s)), σ²), one σ for each entry of the action, the same in every state."""

    def __init__(self, state: int, action: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.net = MLP(state, hidden, action)
        self.place = nn.Parameter(torch.zeros(action))  # of log σ between its bounds, before a sigmoid

    def log_density(self, s: Tensor, a: Tensor) -> Tensor:
        """log N(a; mean(s), σ²), [B]."""
        low, high = _LOG_STD
        log_std = low + (high - low) * torch.sigmoid(self.place)
        z = (a - torch.tanh(self.net(s))) * (-log_std).exp()
        return (-0.5 * z.square() - log_std - 0.5 * math.log(2.0 * math.pi)).sum(dim=1)


class IQL(Learner):
    """V is an upper expectile of Q over the logged actions; the mean of the actor is what is served."""

    kind = "iql"
    curves = ("value_loss", "critic_loss", "q", "target", "actor_loss", "weight")

    def build(self, d: int, k: int) -> None:
        settings = self.settings
        self.policy = self.add("actor", GaussianPolicy(d, k, settings.actor_hidden), settings.actor_lr)
        self.value = self.add("value", MLP(d, settings.critic_hidden, 1), settings.critic_lr)
        self.critics = self.add("critics", Critics(d, k, settings.critic_hidden), settings.critic_lr)
        self.target_critics = self.add_target("target_critics", self.critics)

    def step(self) -> Tensor:
        """One step of V and Q, then of the actor."""
        settings, own = self.settings, self.settings.iql
        _, s, a, r, next_s, done = self.batch()
        with torch.no_grad():
            logged_q = self.target_critics(s, a).amin(dim=0)
            y = r + settings.gamma * (1.0 - done) * self.value(next_s).squeeze(1)

        # V, eq. (5): mean |τ − 1(u < 0)| u², u = min_j Q'_j(s, a) − V(s)
        u = logged_q - self.value(s).squeeze(1)
        value_loss = ((own.expectile - (u < 0.0).float()).abs() * u.square()).mean()
        self.descend("value", value_loss)

        # Q, eq. (6): Σ_j mean (r + γ (1 − done) V(s') − Q_j(s, a))²
        q = self.critics(s, a)
        critic_loss = (y - q).square().mean(dim=1).sum()
        self.descend("critics", critic_loss)

        # actor, eq. (7): maximise mean exp(β (min_j Q'_j(s, a) − V(s))) log π(a | s)
        with torch.no_grad():
            advantage = logged_q - self.value(s).squeeze(1)
            weight = (own.inverse_temperature * advantage).exp().clamp(max=own.max_weight)
        actor_loss = -(weight * self.policy.log_density(s, a)).mean()
        self.descend("actor", actor_loss)

        self.step_count += 1
        if self.step_count % settings.target_interval == 0:
            self.track(self.critics, self.target_critics, settings.target_rate)
        return torch.stack([value_loss, critic_loss, q.mean(), y.mean(), actor_loss, weight.mean()]).detach()

    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return self.exported({"actor": self.policy.net})
