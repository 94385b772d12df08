"""TD3 (Fujimoto et al. 2018), TD3+BC (Fujimoto and Gu 2021) and UWAC (Wu et al. 2021) on top of TD3.

All three learn π(s) = tanh(MLP(s)) from two critics; equation numbers name the paper they are from. The
target networks move as the settings say for every learner (``target_rate`` every ``target_interval``
steps; 0.05 every 10 steps is about these papers' 0.005 every step).
"""

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.policies.batchrl_mtf import Critics
from training.policies.learner import Batch, Learner
from training.policies.networks import MLP, StateMLP


class TD3(Learner):
    """Nothing keeps its actor within the data: on a fixed log it is the control that fails."""

    kind = "td3"
    curves: ClassVar[tuple[str, ...]] = ("critic_loss", "q", "target")

    def build(self, d: int, k: int) -> None:
        settings = self.settings
        self.policy = self.add("actor", MLP(d, settings.actor_hidden, k), settings.actor_lr)
        self.critics = self.add("critics", self.make_critics(d, k), settings.critic_lr)
        self.target_policy = self.add_target("target_actor", self.policy)
        self.target_critics = self.add_target("target_critics", self.critics)

    def make_critics(self, d: int, k: int) -> Critics:
        return Critics(d, k, self.settings.critic_hidden)

    def step(self) -> Tensor:
        """One step of the critics, and of the actor every ``policy_delay`` steps."""
        settings, batch = self.settings, self.batch()
        critic_loss, *curves = self.critic_loss(batch)
        self.descend("critics", critic_loss)
        self.step_count += 1
        if self.step_count % settings.td3.policy_delay == 0:
            self.descend("actor", self.actor_loss(batch))
        if self.step_count % settings.target_interval == 0:
            self.track(self.critics, self.target_critics, settings.target_rate)
            self.track(self.policy, self.target_policy, settings.target_rate)
        return torch.stack([critic_loss, *(values.mean() for values in curves)]).detach()

    def critic_loss(self, batch: Batch) -> tuple[Tensor, ...]:
        """Σ_j mean (y − Q_j(s, a))², y = r + γ (1 − done) min_j Q'_j(s', a'); then Q [2, B] and y [B]."""
        with torch.no_grad():
            next_q = self.target_critics(batch.next_s, self.smoothed(batch.next_s)).amin(dim=0)
            y = batch.r + self.settings.gamma * (1.0 - batch.done) * next_q
        q = self.critics(batch.s, batch.a)
        return (y - q).square().mean(dim=1).sum(), q, y

    def smoothed(self, s: Tensor) -> Tensor:
        """a' = π'(s') + clip(ε, −c, c), ε ~ N(0, σ²), within the bounds: target policy smoothing."""
        own = self.settings.td3
        a = torch.tanh(self.target_policy(s))
        noise = (own.policy_noise * self.normal(*a.shape)).clamp_(-own.noise_clip, own.noise_clip)
        return (a + noise).clamp_(-1.0, 1.0)

    def actor_loss(self, batch: Batch) -> Tensor:
        """−mean Q_1(s, π(s))."""
        return -self.q1(batch.s, torch.tanh(self.policy(batch.s))).mean()

    def q1(self, s: Tensor, a: Tensor) -> Tensor:
        """Q_1(s, a), [B], for a loss of the actor's: gradients do not go to the critic's own parameters."""
        return self.critics.q[0](s, a, fixed=True).squeeze(-1)

    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return self.exported({"actor": self.policy})


class TD3BC(TD3):
    """TD3 whose actor also imitates the log; states are standardised, as its paper asks."""

    kind = "td3_bc"

    def actor_loss(self, batch: Batch) -> Tensor:
        """mean (π(s) − a)² − λ mean Q_1(s, π(s)), λ = α / mean |Q_1(s, π(s))|: eq. (3) and (5)."""
        a = torch.tanh(self.policy(batch.s))
        q = self.q1(batch.s, a)
        scale = self.settings.td3_bc.alpha / q.detach().abs().mean()
        return F.mse_loss(a, batch.a) - scale * q.mean()


class DropoutCritics(Critics):
    """Q_1 and Q_2 whose hidden units are dropped at random: every pass is a draw from the posterior."""

    def __init__(self, state: int, action: int, hidden: tuple[int, ...], dropout: float) -> None:
        super().__init__(state, action, hidden)
        self.dropout = dropout

    def draw(self, s: Tensor, a: Tensor, count: int, noise: torch.Generator) -> Tensor:
        """``count`` passes with units dropped anew: s [B, d] and a [B, k] to [2, B, count]."""
        return torch.stack([self._draw(q, s, a, count, noise) for q in self.q])

    def _draw(self, q: StateMLP, s: Tensor, a: Tensor, count: int, noise: torch.Generator) -> Tensor:
        first, *rest = q.layers
        h = first(torch.cat([s, a], dim=1))[:, None, :]
        for layer in rest:
            draws = torch.rand(len(s), count, h.shape[-1], generator=noise, device=h.device)
            kept = (draws >= self.dropout).to(h.dtype) / (1.0 - self.dropout)
            h = layer(torch.relu(h) * kept)
        return h.squeeze(-1)


class UWACTD3(TD3):
    """TD3 whose losses count less where dropout says that Q is uncertain."""

    kind = "uwac_td3"
    curves = (*TD3.curves, "weight")
    critics: DropoutCritics
    target_critics: DropoutCritics

    def make_critics(self, d: int, k: int) -> DropoutCritics:
        return DropoutCritics(d, k, self.settings.critic_hidden, self.settings.uwac.dropout)

    def weight(self, q: Tensor) -> Tensor:
        """min(β / Var Q, clip), [B]: the variance of the draws [2, B, T], summed over both critics."""
        own = self.settings.uwac
        return (own.beta / q.detach().var(dim=2).sum(dim=0)).clamp(max=own.clip)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, ...]:
        """Each squared error weighted by the certainty of its target; then Q, y and the weights [B].

        Only what the target takes of Q' is uncertain: a session's last step has the largest weight.
        """
        settings = self.settings
        with torch.no_grad():
            next_a = self.smoothed(batch.next_s)
            draws = self.target_critics.draw(batch.next_s, next_a, settings.uwac.samples, self.noise)
            draws *= (1.0 - batch.done)[:, None]
            y = batch.r + settings.gamma * draws.mean(dim=2).amin(dim=0)
            weight = self.weight(draws)
        q = self.critics.draw(batch.s, batch.a, 1, self.noise).squeeze(2)
        return (weight * (y - q).square()).mean(dim=1).sum(), q, y, weight

    def actor_loss(self, batch: Batch) -> Tensor:
        """−mean of Q_1(s, π(s)), weighted by its certainty."""
        a = torch.tanh(self.policy(batch.s))
        draws = self.critics.draw(batch.s, a, self.settings.uwac.samples, self.noise)
        return -(self.weight(draws) * draws[0].mean(dim=1)).mean()
