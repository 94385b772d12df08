"""BatchRL-MTF (Zhang et al., KDD 2022, arXiv 2208.04560): batch-constrained Q-learning of fusion weights.

Letters are the paper's: s state, a action, r reward, s' the next state, z the generator's latent, G generator
(E encoder, D decoder), â an action of G, P_ω perturbation net and ξ what it adds, Q_1 and Q_2 critics, Q'_j
and P'_ω their targets, y a critic's target, n candidates, ρ the bound of the perturbation, η and L rate and
interval of the target update. In shapes B is the batch, d the state's and k the action's width. What the
paper leaves open follows the BCQ reference and is a setting. Rewards are used raw, as eq. (2) gives them.

:meth:`BatchRLMTF.step` is the algorithm. :mod:`training.policies.fast` holds a second form of the same step,
compiled. It takes the page's place where it can run, unless ``learner.batchrl_mtf.precision`` is float32: a
change of the step is made in both, and tests hold one to the other.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.contract.settings import LearnerSettings
from training.policies import fast
from training.policies.draws import OF_CANDIDATES, OF_OWN, OF_Z
from training.policies.learner import Batch, Learner, device
from training.policies.networks import StateMLP

_LOG_STD = (-4.0, 15.0)  # of the encoder: the BCQ reference's bounds
_POOL_PART = 1_024  # states whose candidates are drawn at once
_CHOSEN_ON, _CHOSEN_PART = 1_024, 128  # states that serving latents are chosen on, and at once


class Generator(nn.Module):
    """G = {E(z | s, a), D(a | s, z)}: a conditional VAE of the logged actions, eq. (3)."""

    def __init__(self, state: int, action: int, latent: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = StateMLP(state, action, hidden, 2 * latent)
        self.decoder = StateMLP(state, latent, hidden, action)

    def encode(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log σ of E(z | s, a), each [B, z]."""
        mean, log_std = self.encoder(s, a).chunk(2, dim=1)
        return mean, log_std.clamp(*_LOG_STD)

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

    q: Any  # an nn.ModuleList of StateMLP, which to type checkers holds modules of any kind

    def __init__(self, state: int, action: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.q = nn.ModuleList(StateMLP(state, action, hidden, 1) for _ in range(2))

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """Both critics' values [2, B] (or [2, B, n] for n actions a state)."""
        return torch.stack([q(s, a).squeeze(-1) for q in self.q])


class BatchRLMTF(Learner):
    """The learner of the paper's §2 on fixed transitions."""

    kind = "batchrl_mtf"
    actor = "batchrl_mtf"
    sizes: ClassVar[tuple[str, ...]] = (
        "batchrl_mtf.latent_size",
        "batchrl_mtf.generator_hidden",
        "batchrl_mtf.perturbation_hidden",
    )
    curves: ClassVar[tuple[str, ...]] = (
        "reconstruction",
        "kl",
        "perturbation_q",
        "critic_loss",
        "q",
        "target",
    )

    def build(self, d: int, k: int) -> None:
        settings, own = self.settings, self.settings.batchrl_mtf
        self.latent = own.latent_size or 2 * k
        generator = Generator(d, k, self.latent, own.generator_hidden)
        self.generator = self.add("generator", generator, own.generator_lr)
        perturbation = Perturbation(d, k, own.perturbation_hidden, own.rho)
        self.perturbation = self.add("perturbation", perturbation, own.perturbation_lr)
        self.critics = self.add("critics", Critics(d, k, settings.critic_hidden), settings.critic_lr)
        self.target_perturbation = self.add_target("target_perturbation", self.perturbation)
        self.target_critics = self.add_target("target_critics", self.critics)
        self.draws = fast.draws(self.seed, self.device)
        self._pool: Tensor | None = None
        self.fast = fast.fast_step(self)

    # the algorithm

    def step(self) -> Tensor:
        """One gradient step of each net, in the paper's order; see :attr:`curves` for what is returned."""
        if self.fast is not None:
            return self.fast.step()
        batch = self.batch()
        reconstruction, kl = self.imitate(batch)  # G, eq. (3)
        y = self.target(batch)  # eq. (7)
        perturbation_q = self.perturb(batch)  # P_ω, eq. (5), of Q_1 before its own step
        critic_loss, q = self.criticise(batch, y)  # Q_1 and Q_2, eq. (6)
        self.step_count += 1
        if self.step_count % self.settings.target_interval == 0:  # every L steps
            self.track(self.perturbation, self.target_perturbation, self.settings.target_rate)
            self.track(self.critics, self.target_critics, self.settings.target_rate)
        return torch.stack([reconstruction, kl, perturbation_q, critic_loss, q, y.mean()]).detach()

    def imitate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Eq. (3): maximise E[log D(a | s, z)] − KL(E(z | s, a) ‖ N(0, I)). Reconstruction, KL.

        As the BCQ reference has it: of a Gaussian D the squared error is left, and both are means of entries.
        """
        if self.frozen(self.step_count):
            return torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        mean, log_std = self.generator.encode(batch.s, batch.a)
        z = mean + log_std.exp() * self.draws.normal(self.step_count, OF_Z, *mean.shape)
        reconstruction = F.mse_loss(self.generator.decode(batch.s, z), batch.a)
        kl = -0.5 * (1.0 + 2.0 * log_std - mean.square() - log_std.exp().square()).mean()
        self.descend("generator", reconstruction + self.settings.batchrl_mtf.kl_weight * kl)
        return reconstruction, kl

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """Eq. (7): y = r + γ (1 − done) max_a' min_j Q'_j(s', a'), a' from G and P'_ω; [B].

        Where a session ends no candidates are asked for, as their value does not count. With targets of m > 1
        steps (``learner.target_steps``) r, done and s' are those of the m steps:
        :mod:`training.policies.several_steps`.
        """
        on = torch.nonzero(batch.done < 1.0).squeeze(1)
        s, a = batch.next_s[on], self.candidates(batch, on)
        q = self.target_critics(s, self.target_perturbation.perturb(s, a)).amin(dim=0).amax(dim=1)
        return batch.r + self.settings.gamma * (1.0 - batch.done) * torch.zeros_like(batch.r).index_copy(
            0, on, q
        )

    def candidates(self, batch: Batch, on: Tensor) -> Tensor:
        """â_1 … â_n ~ G(s') of those m rows of a batch whose session goes on, ``on`` [m]: [m, n, k]."""
        if self.frozen(self.step_count):
            if self._pool is None:
                self._pool = self.pool(torch.float32)
            return self._pool[batch.rows[on]]
        n, clip = self.settings.batchrl_mtf.candidates, self.settings.batchrl_mtf.latent_clip
        shape = len(batch.rows), n, self.latent
        z = self.draws.normal(self.step_count, OF_CANDIDATES, *shape, clip=clip)[
            : len(on)
        ]  # as both forms draw
        return self.generator.decode(batch.next_s[on], z)

    def perturb(self, batch: Batch) -> Tensor:
        """Eq. (5): maximise Q_1(s, â + P_ω(s, â)), â ~ G(s). The mean of that."""
        shape, clip = (len(batch.rows), self.latent), self.settings.batchrl_mtf.latent_clip
        with torch.no_grad():
            z = self.draws.normal(self.step_count, OF_OWN, *shape, clip=clip)
            a = self.generator.decode(batch.s, z)
        q = self.critics.q[0](batch.s, self.perturbation.perturb(batch.s, a), fixed=True).mean()
        self.descend("perturbation", -q)
        return q

    def criticise(self, batch: Batch, y: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. (6): minimise Σ_j mean (y − Q_j(s, a))². That, and the mean of both Q."""
        q = self.critics(batch.s, batch.a)
        loss = (y - q).square().mean(dim=1).sum()
        self.descend("critics", loss)
        return loss, q.mean()

    def frozen(self, step: int) -> bool:
        """Whether the generator is no longer trained in this step; each s' then keeps its candidates."""
        after = self.settings.batchrl_mtf.freeze_generator_after
        return after is not None and step >= after

    @torch.no_grad()
    def pool(self, dtype: torch.dtype) -> Tensor:
        """[N, n, k]: n actions of the frozen generator for every s', which are drawn once.

        They depend on the generator and the seed alone, so a resumed run draws the same ones.
        """
        own, noise = self.settings.batchrl_mtf, torch.Generator(self.device).manual_seed(self.seed + 2)
        actions = []
        for states in self.data.next_states.split(_POOL_PART):
            z = torch.randn(len(states), own.candidates, self.latent, generator=noise, device=self.device)
            z.clamp_(-own.latent_clip, own.latent_clip)
            actions.append(self.generator.decode(self.standardised(states), z).to(dtype))
        return torch.cat(actions)

    # what a checkpoint holds

    def state(self) -> dict[str, Tensor]:
        return super().state() | (self.fast.state() if self.fast is not None else {})

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_state(tensors)
        if self.fast is not None:
            self.fast.load_state(tensors)

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_weights(tensors)
        self._pool = None
        if self.fast is not None:
            self.fast.refresh()

    @classmethod
    def arithmetic(cls, settings: LearnerSettings) -> str:
        return fast.arithmetic(settings, device(settings))

    # what serving gets

    def drawn_latents(self, count: int) -> Tensor:
        """[count, z] ~ N(0, I), clipped; from the seed alone."""
        clip, noise = self.settings.batchrl_mtf.latent_clip, torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(count, self.latent, generator=noise).clamp_(-clip, clip)

    @torch.no_grad()
    def serving_latents(self) -> Tensor:
        """Of the serving candidates [n, z]: of ``serving_pool`` drawn ones those that act best together.

        Taken one by one, each the one that raises max_i Q_1(s, â_i + ξ_i) most, on average over logged
        states. They depend on the weights, the data and the seed alone, so every export has the same ones.
        """
        own = self.settings.batchrl_mtf
        count, pool = own.serving_candidates, own.serving_pool
        if pool <= count:
            return self.drawn_latents(count)
        latents = self.drawn_latents(pool)
        rows = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.seed + 3))
        states = self.data.states.index_select(0, rows[:_CHOSEN_ON].to(self.device))
        z = latents.to(self.device)
        values = torch.cat([self._candidates_of(part, z)[1] for part in states.split(_CHOSEN_PART)])
        best = torch.full_like(values[:, 0], -torch.inf)
        chosen: list[int] = []
        for _ in range(count):
            mean = torch.maximum(values, best[:, None]).mean(dim=0)
            mean[chosen] = -torch.inf
            chosen.append(int(mean.argmax()))
            best = torch.maximum(best, values[:, chosen[-1]])
        return latents[chosen]

    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and options of :class:`training.contract.policy.BatchRLMTFActor`."""
        networks = {
            "decoder": self.generator.decoder,
            "perturbation": self.perturbation.net,
            "critic": self.critics.q[0],
        }
        tensors, options = self.exported(networks, latents=self.serving_latents())
        return tensors, options | {"rho": self.settings.batchrl_mtf.rho}

    @torch.no_grad()
    def act(self, states: Tensor, latents: Tensor) -> Tensor:
        """π(s) = argmax over n of Q_1(s, â_i + ξ_i), eq. (4): raw states [B, d], latents [n, z] to [B, k]."""
        actions, values = self._candidates_of(states, latents)
        return actions[torch.arange(len(states)), values.argmax(dim=1)]

    def _candidates_of(self, states: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """â_i + ξ_i [B, n, k] and their Q_1 [B, n], for raw states [B, d] and latents [n, z]."""
        s = self.standardised(states)
        actions = self.generator.decode(s, latents.expand(len(s), -1, -1))
        actions = self.perturbation.perturb(s, actions)
        return actions, self.critics.q[0](s, actions).squeeze(-1)
