"""CQL(H) on SAC (Kumar et al. 2020, Haarnoja et al. 2018): critics that are pushed down off the data.

The penalty is the paper's eq. (4) with its logsumexp estimated by importance sampling (its appendix F)
from uniform actions and the policy's at s and at s'. The weight of the penalty is fixed, and the target
takes the policy's mean action and no entropy, as d3rlpy and the authors' code do by default.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.policies.batchrl_mtf import Critics
from training.policies.learner import Batch, Learner
from training.policies.networks import MLP

_LOG_STD = (-20.0, 2.0)  # SAC's


class Temperature(nn.Module):
    """SAC's α = exp(log α)."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))


class CQLSAC(Learner):
    """A stochastic actor tanh(N(mean(s), std(s)²)); its mean is what is served."""

    kind = "cql_sac"
    curves = ("critic_loss", "conservative_loss", "q", "target", "actor_loss", "temperature", "entropy")

    def build(self, d: int, k: int) -> None:
        settings = self.settings
        self.policy = self.add("actor", MLP(d, settings.actor_hidden, 2 * k), settings.actor_lr)
        self.critics = self.add("critics", Critics(d, k, settings.critic_hidden), settings.critic_lr)
        self.target_critics = self.add_target("target_critics", self.critics)
        own = settings.cql_sac
        self.temperature = self.add("temperature", Temperature(own.temperature), own.temperature_lr)

    def sample(self, s: Tensor, *count: int) -> tuple[Tensor, Tensor]:
        """Actions [B, *count, k] of the policy at s [B, d], and their log densities [B, *count]."""
        mean, log_std = (
            part.view(len(s), *(1 for _ in count), -1) for part in self.policy(s).chunk(2, dim=1)
        )
        log_std = log_std.clamp(*_LOG_STD)
        noise = self.normal(len(s), *count, mean.shape[-1])
        x = mean + log_std.exp() * noise
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        log_slope = 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))  # of tanh, stably
        return torch.tanh(x), (log_normal - log_slope).sum(dim=-1)

    def step(self) -> Tensor:
        """One step of critics, temperature and actor, in this order."""
        settings, batch = self.settings, self.batch()
        s, a = batch.s, batch.a

        # y = r + γ (1 − done) min_j Q'_j(s', tanh(mean(s')))
        with torch.no_grad():
            next_a = torch.tanh(self.policy(batch.next_s).chunk(2, dim=1)[0])
            next_q = self.target_critics(batch.next_s, next_a).amin(dim=0)
            y = batch.r + settings.gamma * (1.0 - batch.done) * next_q
        q = self.critics(s, a)
        critic_loss = (y - q).square().mean(dim=1).sum()
        conservative_loss = (
            settings.cql_sac.conservative_weight * (self.softmax_q(batch) - q).mean(dim=1).sum()
        )
        self.descend("critics", critic_loss + conservative_loss)

        # α: the entropy is held at −k, one for each entry of the action
        new_a, log_density = self.sample(s)
        entropy = -log_density.detach().mean()
        self.descend("temperature", self.temperature.log.exp() * (entropy + a.shape[1]))

        # actor: mean α log π(ã | s) − min_j Q_j(s, ã), ã ~ π(s)
        alpha = self.temperature.log.detach().exp()
        actor_loss = (alpha * log_density - self.critics(s, new_a).amin(dim=0)).mean()
        self.descend("actor", actor_loss)

        self.step_count += 1
        if self.step_count % settings.target_interval == 0:
            self.track(self.critics, self.target_critics, settings.target_rate)
        points = critic_loss, conservative_loss, q.mean(), y.mean(), actor_loss, alpha, entropy
        return torch.stack(points).detach()

    def softmax_q(self, batch: Batch) -> Tensor:
        """log Σ_a exp(Q_j(s, a)) / density(a), [2, B], over n actions of π(s), n of π(s') and n uniform."""
        B, k = batch.a.shape
        n = self.settings.cql_sac.actions
        with torch.no_grad():
            here, log_here = self.sample(batch.s, n)
            there, log_there = self.sample(batch.next_s, n)
            uniform = torch.rand(B, n, k, generator=self.noise, device=self.device) * 2.0 - 1.0
            log_uniform = torch.full_like(log_here, -k * math.log(2.0))
            actions = torch.cat([here, there, uniform], dim=1)
            log_densities = torch.cat([log_here, log_there, log_uniform], dim=1)
        return torch.logsumexp(self.critics(batch.s, actions) - log_densities, dim=2)

    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The mean's half of the actor's last layer, and all below it."""
        tensors, options = self.exported({"actor": self.policy})
        last, k = len(self.policy.layers) - 1, self.data.actions.shape[1]
        for part in ("weight", "bias"):
            tensors[f"actor.{last}.{part}"] = tensors[f"actor.{last}.{part}"][:k]
        return tensors, options
