"""BatchRL-MTF (Zhang et al., KDD 2022, arXiv 2208.04560): batch-constrained Q-learning of fusion weights.

Letters are the paper's: s state, a action, r reward, G generator (E encoder, D decoder), P_ω
perturbation net, Q_1 and Q_2 critics, Q'_j and P'_ω their targets, n candidates, ρ the bound of the
perturbation, η and L rate and interval of the target update. What the paper leaves open follows the
BCQ reference and is a setting. Rewards are used raw, as eq. (2) gives them.

A step is written as equations and their derivatives (``d_x`` is the loss's by x), on the explicit passes of
:mod:`training.policies.passes`: it is what a retrain's hours are made of.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.policies.learner import Learner
from training.policies.networks import StateMLP
from training.policies.products import training_dtype

_POOL_PART = 1_024  # states whose candidates are drawn at once
_LOG_STD = (-4.0, 15.0)  # bounds of the encoder's log σ, the BCQ reference's
_ROUNDED = 8  # a multiple of which is the number of s' with candidates: kernels are made for each number


class Generator(nn.Module):
    """G = {E(z | s, a), D(a | s, z)}: a conditional VAE of the logged actions, eq. (3)."""

    def __init__(self, state: int, action: int, latent: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = StateMLP(state, action, hidden, 2 * latent)
        self.decoder = StateMLP(state, latent, hidden, action)

    def decode(self, s: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.decoder(s, z))


class Perturbation(nn.Module):
    """P_ω(s, a, ρ) = ρ · tanh(·)."""

    def __init__(self, state: int, action: int, hidden: tuple[int, ...], rho: float) -> None:
        super().__init__()
        self.net = StateMLP(state, action, hidden, action)
        self.rho = rho

    def perturb(self, s: Tensor, a: Tensor) -> Tensor:
        """a + P_ω(s, a), kept within the action's bounds."""
        return (a + self.rho * torch.tanh(self.net(s, a))).clamp(-1.0, 1.0)


class Critics(nn.Module):
    """Q_1 and Q_2."""

    def __init__(self, state: int, action: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.q = nn.ModuleList(StateMLP(state, action, hidden, 1) for _ in range(2))

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """Both critics' values [2, B] (or [2, B, n] for n actions a state)."""
        return torch.stack([q(s, a).squeeze(-1) for q in self.q])


def _bootstrapped(done: Tensor) -> Tensor:
    """Rows [M] of the transitions whose Q' counts, and of a few more to make up a multiple of 8."""
    count = int((done < 1.0).sum())
    count = min(len(done), max(_ROUNDED, -(-count // _ROUNDED) * _ROUNDED))
    return torch.argsort(done, stable=True)[:count]


class BatchRLMTF(Learner):
    """The learner of the paper's §2 on fixed transitions."""

    kind = "batchrl_mtf"
    actor = "batchrl_mtf"
    curves = ("reconstruction", "kl", "perturbation_q", "critic_loss", "q", "target")

    def build(self, d: int, k: int) -> None:
        settings = self.settings
        self.latent = settings.latent_size or 2 * k
        self._pool: Tensor | None = None
        self.dtype = training_dtype(settings, self.device)
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
        self.flat = {name: self.flatten(name, self.dtype) for name in self.modules}

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
        for flat in self.flat.values():
            flat.refresh()

    @torch.no_grad()
    def step(self) -> Tensor:
        """One gradient step of each net, in the paper's order."""
        settings, flat, low = self.settings, self.flat, self.dtype
        rows, s, a, r, next_s, done = self.batch()
        B, n = len(s), settings.candidates
        low_s = s.to(low)
        sa = torch.cat([low_s, a.to(low)], dim=1)

        if self.frozen:
            reconstruction = kl = torch.zeros((), device=self.device)
        else:
            reconstruction, kl = self._generator_gradient(sa, a)
            flat["generator"].descend()

        # â ~ G(s) for eq. (5), and n of them at each s' for eq. (7), where it counts
        on = _bootstrapped(done)
        next_s = next_s.to(low)[on, None].expand(-1, n, -1).flatten(0, 1)
        if self.frozen:
            next_a = self._candidates()[rows[on]].flatten(0, 1).to(low)
            generated = self._generated(low_s, self._latents(B))
        else:
            latents = torch.cat([self._latents(B, n)[on].flatten(0, 1), self._latents(B)])
            both = self._generated(torch.cat([next_s, low_s]), latents)
            next_a, generated = both[:-B], both[-B:]

        # y = r + γ (1 − done) max_a' min_j Q'_j(s', a'), a' from G and the target perturbation net, eq. (7)
        moves = flat["target_perturbation"].passes[self.target_perturbation.net]
        xi = torch.tanh(moves.rough_out(moves.hidden(torch.cat([next_s, next_a], dim=1))[-1]))
        next_a = torch.add(next_a, xi, alpha=settings.rho).clamp_(-1.0, 1.0)
        next_sa = torch.cat([next_s, next_a], dim=1)
        values = (flat["target_critics"].passes[q] for q in self.target_critics.q)
        first, second = (q.out(q.hidden(next_sa)[-1]) for q in values)
        next_q = torch.zeros_like(r)
        next_q[on] = torch.minimum(first, second).view(-1, n).amax(dim=1)
        y = r + settings.gamma * (1.0 - done) * next_q

        # P, then Q: both gradients are of the weights before
        perturbation_q = self._perturbation_gradient(low_s, generated)
        flat["perturbation"].descend()
        critic_loss, q_mean = self._critic_gradient(sa, y)
        flat["critics"].descend()

        # every L steps: target ← η · online + (1 − η) · target
        self.step_count += 1
        if self.step_count % settings.target_interval == 0:
            for name in ("critics", "perturbation"):
                flat[f"target_{name}"].track(flat[name], settings.target_rate)
        return torch.stack([reconstruction, kl, perturbation_q, critic_loss, q_mean, y.mean()])

    def _generated(self, s: Tensor, z: Tensor) -> Tensor:
        """D(s, z), each [M, ·], to actions [M, k] in the precision of the products."""
        decoder = self.flat["generator"].passes[self.generator.decoder]
        h = decoder.hidden(torch.cat([s, z.to(self.dtype)], dim=1))[-1]
        return torch.tanh(decoder.rough_out(h))

    def _generator_gradient(self, sa: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Of eq. (3): maximise E[log D(a | s, z)] − KL(E(z | s, a) ‖ N(0, I)). Reconstruction and KL."""
        passes = self.flat["generator"].passes
        encoder, decoder = passes[self.generator.encoder], passes[self.generator.decoder]
        d = sa.shape[1] - a.shape[1]
        to_z = encoder.hidden(sa)
        mean, raw = encoder.out(to_z[-1]).chunk(2, dim=1)
        log_std = raw.clamp(*_LOG_STD)
        std, noise = log_std.exp(), self.normal(*mean.shape)
        variance = std.square()
        z = torch.addcmul(mean, std, noise)
        to_a = decoder.hidden(torch.cat([sa[:, :d], z.to(self.dtype)], dim=1))
        rebuilt = torch.tanh(decoder.out(to_a[-1]))
        error = rebuilt - a

        d_rebuilt = error * (2.0 / error.numel())
        d_z = decoder.back(d_rebuilt * (1.0 - rebuilt.square()), to_a, beside=d)
        weight = self.settings.kl_weight / mean.numel()
        d_mean = torch.add(d_z, mean, alpha=weight)
        d_log_std = torch.addcmul(weight * (variance - 1.0), d_z, noise * std)
        encoder.back(torch.cat([d_mean, d_log_std.masked_fill_(raw != log_std, 0.0)], dim=1), to_z)
        return error.square().mean(), -0.5 * (1.0 + 2.0 * log_std - mean.square() - variance).mean()

    def _perturbation_gradient(self, s: Tensor, a: Tensor) -> Tensor:
        """Of eq. (5): maximise Q_1(s, â + P_ω(s, â)). The mean of that."""
        net = self.flat["perturbation"].passes[self.perturbation.net]
        critic = self.flat["critics"].passes[self.critics.q[0]]
        to_xi = net.hidden(torch.cat([s, a], dim=1))
        xi = torch.tanh(net.out(to_xi[-1]))
        moved = torch.add(a.float(), xi, alpha=self.settings.rho)
        within = moved.clamp(-1.0, 1.0)
        to_q = critic.hidden(torch.cat([s, within.to(self.dtype)], dim=1))
        q = critic.out(to_q[-1])

        d_q = torch.full_like(q, -1.0 / len(q))
        d_moved = critic.back(d_q, to_q, learn=False, beside=s.shape[1]).masked_fill_(moved != within, 0.0)
        net.back(self.settings.rho * d_moved * (1.0 - xi.square()), to_xi)
        return q.mean()

    def _critic_gradient(self, sa: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Of eq. (6): Σ_j mean (y − Q_j(s, a))². That, and the mean of both Q."""
        losses, means = [], []
        for net in self.critics.q:
            critic = self.flat["critics"].passes[net]
            to_q = critic.hidden(sa)
            q = critic.out(to_q[-1])
            error = q - y[:, None]
            critic.back(error * (2.0 / len(y)), to_q)
            losses.append(error.square().mean())
            means.append(q.mean())
        return losses[0] + losses[1], 0.5 * (means[0] + means[1])

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
