"""BatchRL-MTF (Zhang et al., KDD 2022, arXiv 2208.04560): batch-constrained Q-learning of fusion weights.

Letters are the paper's: s state, a action, r reward, G generator (E encoder, D decoder), P_ω
perturbation net, Q_1 and Q_2 critics, Q'_j and P'_ω their targets, n candidates, ρ the bound of the
perturbation, η and L rate and interval of the target update. What the paper leaves open follows the
BCQ reference and is a setting. Rewards are used raw, as eq. (2) gives them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.policies.learner import Learner
from training.policies.networks import StateMLP
from training.policies.products import target_dtype

_POOL_PART = 1_024  # states whose candidates are drawn at once


class Generator(nn.Module):
    """G = {E(z | s, a), D(a | s, z)}: a conditional VAE of the logged actions, eq. (3)."""

    def __init__(self, state: int, action: int, latent: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = StateMLP(state, action, hidden, 2 * latent)
        self.decoder = StateMLP(state, latent, hidden, action)

    def encode(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of z, each [B, z]; the bounds are the BCQ reference's."""
        mean, log_std = self.encoder(s, a).chunk(2, dim=-1)
        return mean, log_std.clamp(-4.0, 15.0)

    def decode(self, s: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.decoder(s, z))

    def draw(self, s: Tensor, z: Tensor, dtype: torch.dtype) -> Tensor:
        """The same for n latents a state [B, n, z], without gradients, with products in ``dtype``."""
        return torch.tanh(self.decoder.rough(s, z, dtype))


class Perturbation(nn.Module):
    """P_ω(s, a, ρ) = ρ · tanh(·)."""

    def __init__(self, state: int, action: int, hidden: tuple[int, ...], rho: float) -> None:
        super().__init__()
        self.net = StateMLP(state, action, hidden, action)
        self.rho = rho

    def perturb(self, s: Tensor, a: Tensor) -> Tensor:
        """a + P_ω(s, a), kept within the action's bounds."""
        return self._moved(a, self.net(s, a))

    def perturb_drawn(self, s: Tensor, a: Tensor, dtype: torch.dtype) -> Tensor:
        """The same for n actions a state [B, n, k], without gradients, with products in ``dtype``."""
        return self._moved(a, self.net.rough(s, a, dtype))

    def _moved(self, a: Tensor, net: Tensor) -> Tensor:
        return (a + self.rho * torch.tanh(net)).clamp(-1.0, 1.0)


class Critics(nn.Module):
    """Q_1 and Q_2."""

    def __init__(self, state: int, action: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.q = nn.ModuleList(StateMLP(state, action, hidden, 1) for _ in range(2))

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """Both critics' values [2, B] (or [2, B, n] for n actions a state)."""
        return torch.stack([q(s, a).squeeze(-1) for q in self.q])

    def least(self, s: Tensor, a: Tensor, dtype: torch.dtype) -> Tensor:
        """min_j Q_j of n actions a state, [B, n], without gradients, with products in ``dtype``."""
        first, second = (q.rough(s, a, dtype).squeeze(-1) for q in self.q)
        return torch.minimum(first, second)


class BatchRLMTF(Learner):
    """The learner of the paper's §2 on fixed transitions."""

    kind = "batchrl_mtf"
    actor = "batchrl_mtf"
    curves = ("reconstruction", "kl", "perturbation_q", "critic_loss", "q", "target")

    def build(self, d: int, k: int) -> None:
        settings = self.settings
        self.latent = settings.latent_size or 2 * k
        self._pool: Tensor | None = None
        self.dtype = target_dtype(settings, self.device)
        self.generator = self.add(
            "generator", Generator(d, k, self.latent, settings.generator_hidden), settings.generator_lr
        )
        self.perturbation = self.add(
            "perturbation",
            Perturbation(d, k, settings.perturbation_hidden, settings.rho),
            settings.perturbation_lr,
        )
        self.critics = self.add("critics", Critics(d, k, settings.critic_hidden), settings.critic_lr)
        self.target_perturbation = self.add_target("target_perturbation", self.perturbation)
        self.target_critics = self.add_target("target_critics", self.critics)

    def _latents(self, *shape: int) -> Tensor:
        """z ~ N(0, I), clipped as when the policy generates actions."""
        clip = self.settings.latent_clip
        return self.normal(*shape, self.latent).clamp_(-clip, clip)

    @property
    def frozen(self) -> bool:
        """Whether the generator is trained no more."""
        after = self.settings.freeze_generator_after
        return after is not None and self.step_count >= after

    @torch.no_grad()
    def _candidates(self) -> Tensor:
        """float32[N, n, k]: n actions of the frozen generator for every s', drawn once.

        They depend on the generator and the seed alone, so a resumed run draws the same ones.
        """
        if self._pool is None:
            clip, n = self.settings.latent_clip, self.settings.candidates
            noise = torch.Generator(self.device).manual_seed(self.seed + 2)
            pools = []
            for states in self.data.next_states.split(_POOL_PART):
                z = torch.randn(len(states), n, self.latent, generator=noise, device=self.device)
                pools.append(self.generator.decode(self.standardised(states), z.clamp_(-clip, clip)))
            self._pool = torch.cat(pools)
        return self._pool

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_weights(tensors)
        self._pool = None

    def step(self) -> Tensor:
        """One gradient step of each net, in the paper's order."""
        settings = self.settings
        rows, s, a, r, next_s, done = self.batch()
        B, n = len(s), settings.candidates

        # G, eq. (3): maximise E[log D(a | s, z)] − KL(E(z | s, a) ‖ N(0, I))
        if self.frozen:
            reconstruction = kl = torch.zeros((), device=self.device)
        else:
            mean, log_std = self.generator.encode(s, a)
            z = mean + log_std.exp() * self.normal(*mean.shape)
            reconstruction = F.mse_loss(self.generator.decode(s, z), a)
            kl = -0.5 * (1.0 + 2.0 * log_std - mean.square() - (2.0 * log_std).exp()).mean()
            self.descend("generator", reconstruction + settings.kl_weight * kl)

        # y = r + γ (1 − done) max_a' min_j Q'_j(s', a'), a' from G and the target perturbation net, eq. (7)
        with torch.no_grad():
            if self.frozen:
                next_a = self._candidates()[rows]
            else:
                next_a = self.generator.draw(next_s, self._latents(B, n), self.dtype)
            next_a = self.target_perturbation.perturb_drawn(next_s, next_a, self.dtype)
            next_q = self.target_critics.least(next_s, next_a, self.dtype).amax(dim=1)
            y = r + settings.gamma * (1.0 - done) * next_q

        # P, eq. (5): maximise Q_1(s, â + P_ω(s, â)), â ~ G(s)
        with torch.no_grad():
            generated = self.generator.decode(s, self._latents(B))
        perturbed = self.perturbation.perturb(s, generated)
        perturbation_q = self.critics.q[0](s, perturbed, fixed=True).mean()
        self.descend("perturbation", -perturbation_q)

        # Q, eq. (6): Σ_i (y − Q_i(s, a))²
        q = self.critics(s, a)
        critic_loss = (y - q).square().mean(dim=1).sum()
        self.descend("critics", critic_loss)

        # every L steps: target ← η · online + (1 − η) · target
        self.step_count += 1
        if self.step_count % settings.target_interval == 0:
            self.track(self.critics, self.target_critics, settings.target_rate)
            self.track(self.perturbation, self.target_perturbation, settings.target_rate)
        return torch.stack([reconstruction, kl, perturbation_q, critic_loss, q.mean(), y.mean()]).detach()

    def serving_latents(self) -> Tensor:
        """Of the serving candidates [n, z]: from the seed alone, so every export has the same ones."""
        return torch.randn(
            self.settings.serving_candidates,
            self.latent,
            generator=torch.Generator().manual_seed(self.seed + 1),
        ).clamp_(-self.settings.latent_clip, self.settings.latent_clip)

    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and options of :class:`training.contract.policy.BatchRLMTFActor`."""
        tensors, options = self.exported(
            {
                "decoder": self.generator.decoder,
                "perturbation": self.perturbation.net,
                "critic": self.critics.q[0],
            },
            latents=self.serving_latents(),
        )
        return tensors, options | {"rho": self.settings.rho}

    @torch.no_grad()
    def act(self, states: Tensor, latents: Tensor) -> Tensor:
        """π(s) = argmax over n of Q_1(s, â_i + ξ_i), eq. (4): raw states [B, d], latents [n, z] to [B, k]."""
        s = self.standardised(states)
        actions = self.generator.decode(s, latents.expand(len(s), -1, -1))
        actions = self.perturbation.perturb(s, actions)
        best = self.critics.q[0](s, actions).squeeze(-1).argmax(dim=1)
        return actions[torch.arange(len(s)), best]
