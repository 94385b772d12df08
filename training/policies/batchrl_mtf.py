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
from training.policies.lanes import Lanes, Results, Task
from training.policies.learner import Learner
from training.policies.networks import StateMLP
from training.policies.parts import DECODER, ENCODER, Drawn, Given, Parts
from training.policies.products import training_dtype

_POOL_PART = 1_024  # states whose candidates are drawn at once
_CHOSEN_ON, _CHOSEN_PART = 1_024, 128  # states that serving latents are chosen on, and at once


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


class Ahead(NamedTuple):
    """What was done for the steps to come, to be done by whichever lane is free.

    All of the first is drawn, and the gradient of its generator is taken.
    """

    now: Drawn
    following: Drawn


class BatchRLMTF(Learner):
    """The learner of the paper's §2 on fixed transitions."""

    kind = "batchrl_mtf"
    actor = "batchrl_mtf"
    sizes = ("batchrl_mtf.latent_size", "batchrl_mtf.generator_hidden", "batchrl_mtf.perturbation_hidden")
    curves = ("reconstruction", "kl", "perturbation_q", "critic_loss", "q", "target")

    def build(self, d: int, k: int) -> None:
        settings, own = self.settings, self.settings.batchrl_mtf
        self.latent = own.latent_size or 2 * k
        self.lanes = Lanes(self.device)
        self._pool: Tensor | None = None
        self._ahead: Ahead | None = None
        self.dtype = training_dtype(settings, self.device)
        self.generator = self.add(
            "generator", Generator(d, k, self.latent, own.generator_hidden), own.generator_lr
        )
        self.perturbation = self.add(
            "perturbation",
            Perturbation(d, k, own.perturbation_hidden, own.rho),
            own.perturbation_lr,
        )
        self.critics = self.add("critics", Critics(d, k, settings.critic_hidden), settings.critic_lr)
        self.target_perturbation = self.add_target("target_perturbation", self.perturbation)
        self.target_critics = self.add_target("target_critics", self.critics)
        self.flatten(self.dtype)
        self._prepare()

    def __deepcopy__(self, memo: dict) -> "BatchRLMTF":
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        # not what was done ahead, as its gradient lies in the generator, whose copy has none; nor the parts
        # and tasks, which know where the parameters lie
        without = dict.fromkeys(("_ahead", "parts", "_tasks"))
        other.__dict__.update(copy.deepcopy(self.__dict__ | without, memo))
        other._prepare()
        return other

    def _prepare(self) -> None:
        """A step's parts, by the fastest means that this processor and these networks allow, and tasks."""
        given = Given(self.settings, self.data, self.state_mean, self.state_scale, self.seed)
        self.parts: Parts = parts_of(self.flat, given)
        self._tasks = {frozen: self._tasks_of(frozen) for frozen in (False, True)}

    def frozen(self, step: int) -> bool:
        """Whether the generator is not trained in this step."""
        after = self.settings.batchrl_mtf.freeze_generator_after
        return after is not None and step >= after

    @torch.no_grad()
    def _candidates(self) -> Tensor:
        """[N, n, k]: n actions of the frozen generator for every s', drawn once.

        They depend on the generator and the seed alone, so a resumed run draws the same ones.
        """
        if self._pool is None:
            own, noise = self.settings.batchrl_mtf, torch.Generator(self.device).manual_seed(self.seed + 2)
            pools, clip = [], own.latent_clip
            for states in self.data.next_states.split(_POOL_PART):
                shape = len(states), own.candidates, self.latent
                z = torch.randn(shape, generator=noise, device=self.device).clamp_(-clip, clip)
                pools.append(self.generator.decode(self.standardised(states), z).to(self.dtype))
            self._pool = torch.cat(pools)
        return self._pool

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_weights(tensors)
        self._pool = self._ahead = None
        self._prepare()

    @torch.no_grad()
    def step(self) -> Tensor:
        """One gradient step of each net, in the paper's order: generator, perturbation net, critics.

        The generator's gradient depends on nothing that the rest of a step changes: that of the next step is
        taken beside it.
        """
        with self.lanes as lanes:
            self._ahead = self._ahead or self._look_ahead()
            now, following = self._ahead
            did = lanes.run(self._tasks[self.frozen(now.step)])
            self._ahead = Ahead(following, did["drawn"])
            self.step_count += 1
            if self.step_count % self.settings.target_interval == 0:  # every L steps
                self.parts.track()
        return self.parts.curves(now)

    def _tasks_of(self, frozen: bool) -> dict[str, Task]:
        """A step's, on what ``_ahead`` holds."""
        parts = self.parts
        halves = {f"decoder {half}": half for half in range(0 if frozen else parts.halves)}
        shares = {f"values {share}": share for share in range(parts.shares)}
        bests = {f"best {half}": half for half in range(parts.halves)}

        def decode(result: Results) -> None:
            for half in halves:
                result(half)
            if not frozen:
                parts.descended("generator", DECODER)

        def draw(_: Results) -> Drawn:
            return self._draw(self.step_count + 2)

        def draw_latents(_: Results) -> None:
            self._draw_latents(self._ahead.following)

        def generate(result: Results) -> None:
            result("decoder")
            if not frozen:
                parts.descend("generator", ENCODER)
            self._generate(self._ahead.following)

        # P, then Q: both gradients are of the weights before
        def perturb(result: Results) -> None:
            result("decoder")
            parts.perturbation(self._ahead.now)
            parts.descend("perturbation")

        # max_a' min_j Q'_j(s', a'), a' from G and P'_ω, eq. (7)
        def values(result: Results, share: int) -> None:
            result("decoder")
            parts.values(self._ahead.now, share, frozen)

        def best(result: Results, half: int) -> None:
            for share in shares:
                result(share)
            parts.best(self._ahead.now, half)

        def target(result: Results) -> None:
            for half in bests:
                result(half)
            parts.target(self._ahead.now)

        def critic(result: Results, j: int) -> None:
            result("y")
            parts.critic(j, self._ahead.now)
            if j == 0:
                result("perturbation")  # whose gradient is of Q_1 as it was
            parts.descend("critics", j)

        # the longest first, so that both lanes end together; what is drawn needs no decoder
        return {
            **{
                name: lambda _, half=half: parts.descend_half("generator", DECODER, half)
                for name, half in halves.items()
            },
            "decoder": decode,
            "drawn": draw,
            "latents": draw_latents,
            "generator": generate,
            "perturbation": perturb,
            **{name: partial(values, share=share) for name, share in shares.items()},
            **{name: partial(best, half=half) for name, half in bests.items()},
            "y": target,
            "second critic": partial(critic, j=1),
            "first critic": partial(critic, j=0),
        }

    def _look_ahead(self) -> Ahead:
        now, following = self._draw(self.step_count), self._draw(self.step_count + 1)
        self._draw_latents(now)
        self._generate(now)
        return Ahead(now, following)

    def _generate(self, drawn: Drawn) -> None:
        """Leaves the generator's gradient in its place, where one is asked for."""
        if not self.frozen(drawn.step):
            self.parts.generator(drawn)

    def _draw(self, step: int) -> Drawn:
        frozen = self.frozen(step)
        return self.parts.draw(self.parts.place(step, frozen), step, self.rows(step), frozen)

    def _draw_latents(self, drawn: Drawn) -> None:
        self.parts.draw_latents(drawn, self._candidates() if self.frozen(drawn.step) else None)

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
