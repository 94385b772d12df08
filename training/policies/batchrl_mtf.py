"""BatchRL-MTF (Zhang et al., KDD 2022, arXiv 2208.04560): batch-constrained Q-learning of fusion weights.

Letters are the paper's: s state, a action, r reward, G generator (E encoder, D decoder), P_ω
perturbation net, Q_1 and Q_2 critics, Q'_j and P'_ω their targets, n candidates, ρ the bound of the
perturbation, η and L rate and interval of the target update. What the paper leaves open follows the
BCQ reference and is a setting. Rewards are used raw, as eq. (2) gives them.

A step is written as equations and their derivatives (:mod:`training.policies.parts`), of which
:mod:`training.policies.kernels` holds a compiled form, and as tasks that run beside each other
(:mod:`training.policies.lanes`): it is what a retrain's hours are made of.
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from training.policies.kernels import parts_of
from training.policies.lanes import Lanes, Results
from training.policies.learner import Learner
from training.policies.networks import StateMLP
from training.policies.parts import Nets, Noise, Parts, Rows
from training.policies.products import training_dtype

_POOL_PART = 1_024  # states whose candidates are drawn at once
_CHOSEN_ON, _CHOSEN_PART = 1_024, 128  # states that serving latents are chosen on, and at once
_ENCODER, _DECODER = 0, 1  # of the generator's nets


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


class Drawn(NamedTuple):
    """What a step takes from the data and its seed alone, in the precision of the products."""

    step: int
    of: Rows
    source: Noise  # of the noise, drawn in this order
    noise: Tensor | None  # float32[B, z] of the generator's z, eq. (3); not where it is frozen


class Latents(NamedTuple):
    """The rest of a step's noise, in the precision of the products."""

    next: Tensor | None  # [M, n, z] for candidates at s', eq. (7); not where the generator is frozen
    own: Tensor  # [B, z] for an action at s, eq. (5)


class Ahead(NamedTuple):
    """What was done for the steps to come, to be done by whichever lane is free."""

    drawn: tuple[Drawn, Drawn]  # of the next two steps
    latents: Latents  # of the first
    losses: tuple[Tensor, Tensor]  # of the generator in the next one, whose gradient lies in its place


class BatchRLMTF(Learner):
    """The learner of the paper's §2 on fixed transitions."""

    kind = "batchrl_mtf"
    actor = "batchrl_mtf"
    curves = ("reconstruction", "kl", "perturbation_q", "critic_loss", "q", "target")

    def build(self, d: int, k: int) -> None:
        settings = self.settings
        self.latent = settings.latent_size or 2 * k
        self.lanes = Lanes(self.device)
        self._pool: Tensor | None = None
        self._ahead: Ahead | None = None
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
        self.flatten(self.dtype)
        self.parts = self._parts()

    def __deepcopy__(self, memo: dict) -> "BatchRLMTF":
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        # not what was done ahead, as its gradient lies in the generator, whose copy has none; nor the parts,
        # which know where the parameters lie
        other.__dict__.update(copy.deepcopy(self.__dict__ | {"_ahead": None, "parts": None}, memo))
        other.parts = other._parts()
        return other

    def _parts(self) -> Parts:
        """Of a step, by the fastest means that this processor and these networks allow."""
        names = "generator", "perturbation", "critics", "target_perturbation", "target_critics"
        nets = Nets(*(net for name in names for net in self.flat[name].nets))
        return parts_of(nets, self.settings.precision)

    def frozen(self, step: int) -> bool:
        """Whether the generator is not trained in this step."""
        after = self.settings.freeze_generator_after
        return after is not None and step >= after

    @torch.no_grad()
    def _candidates(self) -> Tensor:
        """float32[N, n, k]: n actions of the frozen generator for every s', drawn once.

        They depend on the generator and the seed alone, so a resumed run draws the same ones.
        """
        if self._pool is None:
            noise = torch.Generator(self.device).manual_seed(self.seed + 2)
            pools, clip = [], self.settings.latent_clip
            for states in self.data.next_states.split(_POOL_PART):
                shape = len(states), self.settings.candidates, self.latent
                z = torch.randn(shape, generator=noise, device=self.device).clamp_(-clip, clip)
                pools.append(self.generator.decode(self.standardised(states), z))
            self._pool = torch.cat(pools)
        return self._pool

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_weights(tensors)
        self._pool = self._ahead = None

    @torch.no_grad()
    def step(self) -> Tensor:
        """One gradient step of each net, in the paper's order: generator, perturbation net, critics.

        The generator's gradient depends on nothing that the rest of a step changes: that of the next step is
        taken beside it.
        """
        settings, flat, rho, parts = self.settings, self.flat, self.settings.rho, self.parts
        exact = parts.exact_gradients
        with self.lanes as lanes:
            (now, following), latents, losses = self._ahead or self._look_ahead()
            frozen, sa, r, on, next_s = now.noise is None, now.of.sa, now.of.r, now.of.on, now.of.next_s
            s = sa[:, : next_s.shape[1]]
            pool = self._candidates() if frozen else None
            shares = {f"values from {share.start}": share for share in parts.shares(len(on))}

            def decode(_: Results) -> None:
                if not frozen:
                    flat["generator"].descend(_DECODER, exact)

            # max_a' min_j Q'_j(s', a'), a' from G and P'_ω, eq. (7)
            def values(result: Results, part: slice) -> Tensor:
                if frozen:
                    x = pool.index_select(0, now.of.rows[on[part]]).to(self.dtype)
                else:
                    x = latents.next[part]
                result("decoder")
                return parts.next_values(next_s[part], x, rho, frozen)

            # P, then Q: both gradients are of the weights before
            def perturb(result: Results) -> Tensor:
                result("decoder")
                q = parts.perturbation_gradient(s, parts.generated(s, latents.own), rho)
                flat["perturbation"].descend(exact=exact)
                return q

            def generate(result: Results) -> tuple[Tensor, Tensor]:
                result("decoder")
                if not frozen:
                    flat["generator"].descend(_ENCODER, exact)
                return self._generator_gradient(following)

            # y = r + γ (1 − done) of that
            def target(result: Results) -> Tensor:
                next_q = torch.cat([result(share) for share in shares])
                next_q = torch.zeros_like(r).index_copy_(0, on, next_q)
                return r + settings.gamma * (1.0 - now.of.done) * next_q

            def critic(result: Results, j: int) -> tuple[Tensor, Tensor]:
                points = parts.critic_gradient(j, sa, result("y"))
                if j == 0:
                    result("perturbation")  # whose gradient is of Q_1 as it was
                flat["critics"].descend(j, exact)
                return points

            # the longest first, so that both lanes end together; what is drawn needs no decoder
            did = lanes.run(
                {
                    "decoder": decode,
                    "drawn": lambda _: self._draw(following.step + 1),
                    "latents": lambda _: self._draw_latents(following),
                    "generator": generate,
                    "perturbation": perturb,
                    **{name: partial(values, part=share) for name, share in shares.items()},
                    "y": target,
                    "second critic": partial(critic, j=1),
                    "first critic": partial(critic, j=0),
                }
            )
            self._ahead = Ahead((following, did["drawn"]), did["latents"], did["generator"])

            # every L steps: target ← η · online + (1 − η) · target
            self.step_count += 1
            if self.step_count % settings.target_interval == 0:
                for name in ("critics", "perturbation"):
                    flat[f"target_{name}"].track(flat[name], settings.target_rate)
        (loss, q), (second_loss, second_q) = did["first critic"], did["second critic"]
        points = did["perturbation"], loss + second_loss, 0.5 * (q + second_q), did["y"].mean()
        return torch.stack([*losses, *points])

    def _look_ahead(self) -> Ahead:
        now, following = self._draw(self.step_count), self._draw(self.step_count + 1)
        return Ahead((now, following), self._draw_latents(now), self._generator_gradient(now))

    def _generator_gradient(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Left in its place; returns reconstruction and KL."""
        if drawn.noise is None:
            return (torch.zeros((), device=self.device),) * 2
        return self.parts.generator_gradient(drawn.of.sa, drawn.of.a, drawn.noise, self.settings.kl_weight)

    def _draw(self, step: int) -> Drawn:
        rows = self.parts.rows(self.data, self.rows(step), self.state_mean, self.state_scale)
        source = self.parts.noise(self.seed, step)
        noise = None if self.frozen(step) else source.normal(len(rows.sa), self.latent)
        return Drawn(step, rows, source, noise)

    def _draw_latents(self, drawn: Drawn) -> Latents:
        candidates, clip = None, self.settings.latent_clip
        if not self.frozen(drawn.step):
            count = len(drawn.of.on), self.settings.candidates
            candidates = drawn.source.latents(clip, *count, self.latent)
        return Latents(candidates, drawn.source.latents(clip, len(drawn.of.sa), self.latent))

    def drawn_latents(self, count: int) -> Tensor:
        """[count, z] ~ N(0, I), clipped; from the seed alone."""
        return torch.randn(count, self.latent, generator=torch.Generator().manual_seed(self.seed + 1)).clamp_(
            -self.settings.latent_clip, self.settings.latent_clip
        )

    @torch.no_grad()
    def serving_latents(self) -> Tensor:
        """Of the serving candidates [n, z]: of ``serving_pool`` drawn ones those that act best together.

        Taken one by one, each the one that raises max_i Q_1(s, â_i + ξ_i) most, on average over logged
        states. They depend on the weights, the data and the seed alone, so every export has the same ones.
        """
        count, pool = self.settings.serving_candidates, self.settings.serving_pool
        if pool <= count:
            return self.drawn_latents(count)
        latents = self.drawn_latents(pool)
        rows = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.seed + 3))
        states = self.data.states.index_select(0, rows[:_CHOSEN_ON].to(self.device))
        z = latents.to(self.device)
        values = torch.cat([self._candidates_of(part, z)[1] for part in states.split(_CHOSEN_PART)])
        best, chosen = torch.full_like(values[:, 0], -torch.inf), []
        for _ in range(count):
            mean = torch.maximum(values, best[:, None]).mean(dim=0)
            mean[chosen] = -torch.inf
            chosen.append(int(mean.argmax()))
            best = torch.maximum(best, values[:, chosen[-1]])
        return latents[chosen]

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
        actions, values = self._candidates_of(states, latents)
        return actions[torch.arange(len(states)), values.argmax(dim=1)]

    def _candidates_of(self, states: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """â_i + ξ_i [B, n, k] and their Q_1 [B, n], for raw states [B, d] and latents [n, z]."""
        s = self.standardised(states)
        actions = self.generator.decode(s, latents.expand(len(s), -1, -1))
        actions = self.perturbation.perturb(s, actions)
        return actions, self.critics.q[0](s, actions).squeeze(-1)
