"""The parts of BatchRL-MTF's step: its equations and their derivatives on the explicit passes.

Letters are :mod:`training.policies.batchrl_mtf`'s; ``d_x`` is the loss's derivative by x. s, a, sa = (s, a),
z and x are [B, ·] in the precision of the products.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from training.contract.settings import LearnerSettings
from training.policies.networks import standardise
from training.policies.passes import (
    Flat,
    Net,
    Room,
    back,
    by_input,
    hidden,
    hidden_of_each,
    out,
    room,
    rough_out,
)
from training.policies.products import compiled
from training.trajectories import Transitions

MODULES = "generator", "perturbation", "critics", "target_perturbation", "target_critics"
ENCODER, DECODER = 0, 1  # of the generator's nets
_ROUNDED = 8  # a multiple of which is the number of s' with candidates
_NOISE = 15_485_863  # between the seeds of two draws
_DRAWS = 3  # of a step
OF_Z, OF_CANDIDATES, OF_OWN = range(_DRAWS)


class Nets(NamedTuple):
    """All MLPs of a step, in the order of their modules."""

    encoder: Net
    decoder: Net
    perturbation: Net
    first: Net  # Q_1
    second: Net
    target_perturbation: Net
    target_first: Net
    target_second: Net


def bootstrapped(done: Tensor) -> Tensor:
    """Rows [M] of the transitions whose Q' counts, and of a few more: oneDNN makes kernels for each M."""
    count = _ROUNDED * max(1, -(-int((done < 1.0).sum()) // _ROUNDED))
    return torch.argsort(done, stable=True)[: min(len(done), count)]


@compiled
def generated(decoder: Net, s: Tensor, z: Tensor) -> Tensor:
    """D(s, z), an action [B, k] in the precision of the products."""
    return torch.tanh(rough_out(decoder, hidden(decoder, torch.cat([s, z], dim=1))[-1]))


@compiled
def next_values(
    decoder: Net | None,
    perturbation: Net,
    first: Net,
    second: Net,
    s: Tensor,
    x: Tensor,
    rho: float,
    room: Room,
) -> Tensor:
    """max_a' min_j Q'_j(s', a') of eq. (7), float32[B], for s' [B, d].

    x [B, n, ·] holds n latents of each s', for the decoder, or without it n actions.
    """
    a = x.flatten(0, 1)
    if decoder is not None:
        a = torch.tanh(rough_out(decoder, hidden_of_each(decoder, s, a, room)))
    xi = torch.tanh(rough_out(perturbation, hidden_of_each(perturbation, s, a, room)))
    a = torch.add(a, xi, alpha=rho).clamp_(-1.0, 1.0)
    q = out(first, hidden_of_each(first, s, a, room))
    q = torch.minimum(q, out(second, hidden_of_each(second, s, a, room)))
    return q.view(x.shape[0], x.shape[1]).amax(dim=1)


@compiled
def generator_gradient(
    encoder: Net, decoder: Net, sa: Tensor, a: Tensor, noise: Tensor, kl_weight: float
) -> tuple[Tensor, Tensor]:
    """Of eq. (3): maximise E[log D(a | s, z)] − KL(E(z | s, a) ‖ N(0, I)). Reconstruction and KL.

    a [B, k] and z's noise [B, z], a standard normal, are float32.
    """
    d = sa.shape[1] - a.shape[1]
    to_z = hidden(encoder, sa)
    mean, raw = out(encoder, to_z[-1]).chunk(2, dim=1)
    log_std = raw.clamp(-4.0, 15.0)  # the BCQ reference's bounds
    std = log_std.exp()
    variance = std.square()
    z = torch.addcmul(mean, std, noise)
    to_a = hidden(decoder, torch.cat([sa[:, :d], z.to(sa.dtype)], dim=1))
    rebuilt = torch.tanh(out(decoder, to_a[-1]))
    error = rebuilt - a

    d_rebuilt = error * (2.0 / error.numel())
    d_z = by_input(decoder, back(decoder, d_rebuilt * (1.0 - rebuilt.square()), to_a), d)
    weight = kl_weight / mean.numel()
    d_mean = torch.add(d_z, mean, alpha=weight)
    d_log_std = torch.addcmul(weight * (variance - 1.0), d_z, noise * std).masked_fill_(raw != log_std, 0.0)
    back(encoder, torch.cat([d_mean, d_log_std], dim=1), to_z)
    return error.square().mean(), -0.5 * (1.0 + 2.0 * log_std - mean.square() - variance).mean()


@compiled
def perturbation_gradient(perturbation: Net, critic: Net, s: Tensor, a: Tensor, rho: float) -> Tensor:
    """Of eq. (5): maximise Q_1(s, â + P_ω(s, â)). The mean of that."""
    to_xi = hidden(perturbation, torch.cat([s, a], dim=1))
    xi = torch.tanh(out(perturbation, to_xi[-1]))
    moved = torch.add(a.float(), xi, alpha=rho)
    within = moved.clamp(-1.0, 1.0)
    to_q = hidden(critic, torch.cat([s, within.to(s.dtype)], dim=1))
    q = out(critic, to_q[-1])

    d_q = torch.full_like(q, -1.0 / q.shape[0])
    d_moved = by_input(critic, back(critic, d_q, to_q, learn=False), s.shape[1])
    d_moved = d_moved.masked_fill_(moved != within, 0.0)
    back(perturbation, rho * d_moved * (1.0 - xi.square()), to_xi)
    return q.mean()


@compiled
def critic_gradient(critic: Net, sa: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of eq. (6) for one critic: minimise (y − Q(s, a))². The mean of that, and of Q(s, a)."""
    to_q = hidden(critic, sa)
    q = out(critic, to_q[-1])
    error = q - y[:, None]
    back(critic, error * (2.0 / y.shape[0]), to_q)
    return error.square().mean(), q.mean()


class Given(NamedTuple):
    """What a step learns from, and how."""

    settings: LearnerSettings
    data: Transitions
    mean: Tensor  # [d], of the states, which are standardised by it
    scale: Tensor  # [d]
    seed: int


class Drawn:
    """What a step takes from the data and its seed alone, and what its parts leave for each other.

    M is the number of transitions whose Q' counts, or of a few more.
    """

    step: int
    rows: Tensor  # int64[B], of the transitions
    sa: Tensor  # [B, d + k]; s and s' are standardised
    a: Tensor  # float32[B, k]
    r: Tensor  # float32[B]
    done: Tensor  # float32[B]
    count: int  # M
    on: Tensor  # int64[M or more]: their places in the batch
    next_s: Tensor  # [M or more, d]
    noise: Tensor  # float32[B, z], of the generator's z, eq. (3)
    x: Tensor  # [M or more, n, ·], of the candidates of eq. (7): latents, or where D is frozen actions
    own: Tensor  # [B, z]: latents of the actions at s, eq. (5)
    best: Tensor  # float32[M or more], of eq. (7)
    y: Tensor  # float32[B], the critics' target
    points: Tensor  # float32[8]: reconstruction, KL, mean Q of eq. (5), mean y, then each critic's loss and Q


class Noise:
    """Standard normals by PyTorch; they depend on seed, step and which draw of the step it is alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fill(self, numbers: Tensor, step: int, which: int, clip: float = math.inf) -> Tensor:
        """Of float32 or bfloat16, contiguous; within ± clip."""
        source = torch.Generator(numbers.device).manual_seed(
            self._seed + _NOISE * (_DRAWS * step + which + 1)
        )
        drawn = torch.randn(numbers.shape, generator=source, device=numbers.device)
        return numbers.copy_(drawn.clamp_(-clip, clip))


class Parts:
    """The parts by PyTorch, on any device and in any precision; the nets' parameters stay where they are."""

    shares = 2  # of :meth:`values`
    halves = 1  # of :meth:`descend` and :meth:`best`

    def __init__(self, flat: Mapping[str, Flat], given: Given, noise: Noise) -> None:
        """``noise``: the same in every precision, so that policies learnt in two of them can be paired."""
        self.flat, self.given, self.noise = flat, given, noise
        self.nets = Nets(*(net for name in MODULES for net in flat[name].nets))
        self.latent = self.nets.encoder.weights[-1].shape[0] // 2
        self._widest = max(weight.shape[0] for net in self.nets for weight in net.weights)
        self.dtype, self._device = self.nets.first.weights[0].dtype, self.nets.first.weights[0].device

    # what is drawn

    def place(self, step: int, frozen: bool) -> Drawn:
        """For a step, whose place may be that of the third step before; ``frozen``: the generator is."""
        drawn = Drawn()
        drawn.points = torch.zeros(8, device=self._device)
        return drawn

    def draw(self, drawn: Drawn, step: int, rows: Tensor, frozen: bool) -> Drawn:
        """The transitions ``rows``, and z's noise."""
        data = self.given.data
        drawn.step, drawn.rows = step, rows
        drawn.a, drawn.done = data.actions.index_select(0, rows), data.dones.index_select(0, rows)
        drawn.r = data.rewards.index_select(0, rows)
        drawn.on = bootstrapped(drawn.done)
        drawn.count = len(drawn.on)
        drawn.best = torch.empty(drawn.count, device=self._device)
        drawn.next_s = self._standardised(data.next_states.index_select(0, rows.index_select(0, drawn.on)))
        s = self._standardised(data.states.index_select(0, rows))
        drawn.sa = torch.cat([s, drawn.a.to(self.dtype)], dim=1)
        if not frozen:
            drawn.noise = self._normal(torch.float32, len(rows), self.latent)
            self.noise.fill(drawn.noise, step, OF_Z)
        return drawn

    def draw_latents(self, drawn: Drawn, pool: Tensor | None) -> None:
        """``pool`` [N, n, k] holds the candidates of every s' where the generator is frozen."""
        clip = self.given.settings.batchrl_mtf.latent_clip
        if pool is None:
            drawn.x = self._normal(
                self.dtype, drawn.count, self.given.settings.batchrl_mtf.candidates, self.latent
            )
            self.noise.fill(drawn.x, drawn.step, OF_CANDIDATES, clip)
        else:
            drawn.x = pool.index_select(0, drawn.rows.index_select(0, drawn.on))
        drawn.own = self._normal(self.dtype, len(drawn.rows), self.latent)
        self.noise.fill(drawn.own, drawn.step, OF_OWN, clip)

    # what is learnt

    def generator(self, drawn: Drawn) -> None:
        """Leaves the gradient of eq. (3)."""
        nets, points = self.nets, drawn.points
        points[0], points[1] = generator_gradient(
            nets.encoder,
            nets.decoder,
            drawn.sa,
            drawn.a,
            drawn.noise,
            self.given.settings.batchrl_mtf.kl_weight,
        )

    def perturbation(self, drawn: Drawn) -> None:
        """Leaves the gradient of eq. (5)."""
        nets, s = self.nets, drawn.sa[:, : drawn.next_s.shape[1]]
        a = generated(nets.decoder, s, drawn.own)
        rho = self.given.settings.batchrl_mtf.rho
        drawn.points[2] = perturbation_gradient(nets.perturbation, nets.first, s, a, rho)

    def values(self, drawn: Drawn, share: int, frozen: bool) -> None:
        """One share of eq. (7), by the targets."""
        nets, size = self.nets, -(-drawn.count // self.shares)
        part = slice(share * size, (share + 1) * size)
        x = drawn.x[part]
        if len(x) == 0:
            return
        space = room(x.shape[0] * x.shape[1] * self._widest, x.dtype, x.device)
        drawn.best[part] = next_values(
            None if frozen else nets.decoder,
            nets.target_perturbation,
            nets.target_first,
            nets.target_second,
            drawn.next_s[part],
            x,
            self.given.settings.batchrl_mtf.rho,
            space,
        )

    def best(self, drawn: Drawn, half: int) -> None:
        """What of eq. (7) needs all shares, in as many parts as :attr:`halves` says."""

    def target(self, drawn: Drawn) -> None:
        """y = r + γ (1 − done) of that."""
        next_q = torch.zeros_like(drawn.r).index_copy_(0, drawn.on, drawn.best)
        drawn.y = drawn.r + self.given.settings.gamma * (1.0 - drawn.done) * next_q
        drawn.points[3] = drawn.y.mean()

    def critic(self, j: int, drawn: Drawn) -> None:
        """Leaves the gradient of eq. (6) for Q_1 (j = 0) or Q_2."""
        net, points = self.nets.second if j else self.nets.first, drawn.points
        points[4 + 2 * j], points[5 + 2 * j] = critic_gradient(net, drawn.sa, drawn.y)

    def descend(self, name: str, which: int = 0) -> None:
        """One step of Adam on the gradient that was left of one net of a module."""
        self.flat[name].descend(which)

    def descend_half(self, name: str, which: int, half: int) -> None:
        """A share of that which a lane can take, of as many as :attr:`halves` says."""
        self.descend(name, which)

    def descended(self, name: str, which: int) -> None:
        """What is left to do after all of them."""

    def track(self) -> None:
        """target ← η · online + (1 − η) · target."""
        for name in ("critics", "perturbation"):
            self.flat[f"target_{name}"].track(self.flat[name], self.given.settings.target_rate)

    def curves(self, drawn: Drawn) -> Tensor:
        """float32[6]: reconstruction, KL, mean Q of eq. (5), both critics' loss, mean of their Q, mean y."""
        critics = drawn.points[4:6] + drawn.points[6:]
        return torch.cat([drawn.points[:3], critics[:1], 0.5 * critics[1:], drawn.points[3:4]])

    def _standardised(self, states: Tensor) -> Tensor:
        return standardise(states, self.given.mean, self.given.scale).to(self.dtype)

    def _normal(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)
