"""BatchRL-MTF (Zhang et al., KDD 2022, arXiv 2208.04560): batch-constrained Q-learning of fusion weights.

Letters are the paper's: s state, a action, r reward, G generator (E encoder, D decoder), P_ω
perturbation net, Q_1 and Q_2 critics, Q'_j and P'_ω their targets, n candidates, ρ the bound of the
perturbation, η and L rate and interval of the target update. What the paper leaves open follows the
BCQ reference and is a setting. Rewards are used raw, as eq. (2) gives them.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.contract.settings import LearnerSettings
from training.policies.networks import STATE_CLIP, StateMLP, standardisation, standardise
from training.trajectories import Transitions

CURVES = ("reconstruction", "kl", "perturbation_q", "critic_loss", "q", "target")
_INDEX_BLOCK = 1_000  # steps whose batches are drawn at once


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


class BatchRLMTF:
    """A learner on fixed transitions. Same transitions, settings, seed and threads: same weights."""

    kind = "batchrl_mtf"

    def __init__(self, settings: LearnerSettings, data: Transitions, seed: int) -> None:
        d, k = data.states.shape[1], data.actions.shape[1]
        self.settings = settings
        self.latent = settings.latent_size or 2 * k
        self.seed = seed
        self.noise = torch.Generator().manual_seed(seed)
        self.step_count = 0
        self.state_mean, self.state_scale = standardisation(data.states)
        self.data = data
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generator = Generator(d, k, self.latent, settings.generator_hidden)
            self.perturbation = Perturbation(d, k, settings.perturbation_hidden, settings.rho)
            self.critics = Critics(d, k, settings.critic_hidden)
        self.target_perturbation = copy.deepcopy(self.perturbation).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.optimisers = {
            "generator": torch.optim.Adam(self.generator.parameters(), settings.generator_lr, fused=True),
            "perturbation": torch.optim.Adam(
                self.perturbation.parameters(), settings.perturbation_lr, fused=True
            ),
            "critics": torch.optim.Adam(self.critics.parameters(), settings.critic_lr, fused=True),
        }
        self._place(data)

    def _place(self, data: Transitions) -> None:
        """The transitions as the step reads them: states standardised."""
        self.s = standardise(data.states, self.state_mean, self.state_scale)
        self.next_s = standardise(data.next_states, self.state_mean, self.state_scale)

    def _batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """M ~ the replay: (s, a, r, s', done) of ``batch_size`` transitions, uniform with replacement.

        A block's indices depend on seed and block number alone, so a resumed run draws the same ones.
        """
        block, row = divmod(self.step_count, _INDEX_BLOCK)
        if row == 0 or not hasattr(self, "indices"):
            generator = torch.Generator().manual_seed(self.seed + 7_919 * (block + 1))
            shape = (_INDEX_BLOCK, self.settings.batch_size)
            self.indices = torch.randint(len(self.data), shape, generator=generator)
        i = self.indices[row]
        return self.s[i], self.data.actions[i], self.data.rewards[i], self.next_s[i], self.data.dones[i]

    def _latents(self, *shape: int) -> Tensor:
        """z ~ N(0, I), clipped as when the policy generates actions."""
        clip = self.settings.latent_clip
        return torch.randn(*shape, self.latent, generator=self.noise).clamp_(-clip, clip)

    def step(self) -> Tensor:
        """One gradient step of each net, in the paper's order; returns float32[len(CURVES)]."""
        settings = self.settings
        s, a, r, next_s, done = self._batch()
        B, n = len(s), settings.candidates

        # G, eq. (3): maximise E[log D(a | s, z)] − KL(E(z | s, a) ‖ N(0, I))
        mean, log_std = self.generator.encode(s, a)
        z = mean + log_std.exp() * torch.randn(mean.shape, generator=self.noise)
        reconstruction = F.mse_loss(self.generator.decode(s, z), a)
        kl = -0.5 * (1.0 + 2.0 * log_std - mean.square() - (2.0 * log_std).exp()).mean()
        self._descend("generator", reconstruction + settings.kl_weight * kl)

        # y = r + γ (1 − done) max_a' min_j Q'_j(s', a'), a' from G and the target perturbation net, eq. (7)
        with torch.no_grad():
            next_a = self.generator.decode(next_s, self._latents(B, n))
            next_a = self.target_perturbation.perturb(next_s, next_a)
            next_q = self.target_critics(next_s, next_a).amin(dim=0).amax(dim=1)
            y = r + settings.gamma * (1.0 - done) * next_q

        # P, eq. (5): maximise Q_1(s, â + P_ω(s, â)), â ~ G(s)
        with torch.no_grad():
            generated = self.generator.decode(s, self._latents(B))
        perturbed = self.perturbation.perturb(s, generated)
        perturbation_q = self.critics.q[0](s, perturbed).mean()
        self._descend("perturbation", -perturbation_q)

        # Q, eq. (6): Σ_i (y − Q_i(s, a))²
        q = self.critics(s, a)
        critic_loss = (y - q).square().mean(dim=1).sum()
        self._descend("critics", critic_loss)

        # every L steps: target ← η · online + (1 − η) · target
        self.step_count += 1
        if self.step_count % settings.target_interval == 0:
            self._move_targets()
        return torch.stack([reconstruction, kl, perturbation_q, critic_loss, q.mean(), y.mean()]).detach()

    def _descend(self, name: str, loss: Tensor) -> None:
        """Adam on the parameters of one optimiser and no other (P's loss also runs through Q)."""
        optimiser = self.optimisers[name]
        parameters = optimiser.param_groups[0]["params"]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimiser.step()

    @torch.no_grad()
    def _move_targets(self) -> None:
        for online, target in (
            (self.critics, self.target_critics),
            (self.perturbation, self.target_perturbation),
        ):
            torch._foreach_lerp_(
                list(target.parameters()), list(online.parameters()), self.settings.target_rate
            )

    # what a checkpoint holds, and what serving gets

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator,
            "perturbation": self.perturbation,
            "critics": self.critics,
            "target_perturbation": self.target_perturbation,
            "target_critics": self.target_critics,
        }

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, beside transitions and settings."""
        tensors = {"state_mean": self.state_mean, "state_scale": self.state_scale}
        for name, module in self.modules.items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for index, moments in optimiser.state_dict()["state"].items():
                tensors |= {f"adam.{name}.{index}.{key}": value for key, value in moments.items()}
        tensors["noise"] = self.noise.get_state()
        tensors["step_count"] = torch.tensor(self.step_count)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on exactly where :meth:`state` was taken."""
        self.load_weights(tensors)
        for name, optimiser in self.optimisers.items():
            described = optimiser.state_dict()
            for index in range(len(described["param_groups"][0]["params"])):
                prefix = f"adam.{name}.{index}."
                moments = {
                    k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)
                }
                if moments:
                    described["state"][index] = moments
            optimiser.load_state_dict(described)
        self.noise.set_state(tensors["noise"])
        self.step_count = int(tensors["step_count"])
        vars(self).pop("indices", None)

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Nets, targets and the standardisation they were trained with, but no optimiser: a warm start."""
        for name, module in self.modules.items():
            prefix = f"{name}."
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        self.state_mean, self.state_scale = tensors["state_mean"].clone(), tensors["state_scale"].clone()
        self._place(self.data)

    def export(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Tensors and options of :class:`training.contract.policy.BatchRLMTFActor`.

        The serving candidates' latents come from the seed alone, so every export of a learner has the
        same ones.
        """
        latents = torch.randn(
            self.settings.serving_candidates,
            self.latent,
            generator=torch.Generator().manual_seed(self.seed + 1),
        ).clamp_(-self.settings.latent_clip, self.settings.latent_clip)
        tensors = {"latents": latents, "state_mean": self.state_mean, "state_scale": self.state_scale}
        nets = {
            "decoder": self.generator.decoder,
            "perturbation": self.perturbation.net,
            "critic": self.critics.q[0],
        }
        for name, net in nets.items():
            for key, value in net.layers.state_dict().items():
                tensors[f"{name}.{key}"] = value
        options = {"rho": self.settings.rho, "state_clip": STATE_CLIP}
        return {name: tensor.numpy() for name, tensor in tensors.items()}, options

    @torch.no_grad()
    def act(self, states: Tensor, latents: Tensor) -> Tensor:
        """π(s) = argmax over n of Q_1(s, â_i + ξ_i), eq. (4): raw states [B, d], latents [n, z] to [B, k]."""
        s = standardise(states, self.state_mean, self.state_scale)
        actions = self.generator.decode(s, latents.expand(len(s), -1, -1))
        actions = self.perturbation.perturb(s, actions)
        best = self.critics.q[0](s, actions).squeeze(-1).argmax(dim=1)
        return actions[torch.arange(len(s)), best]
