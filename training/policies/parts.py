"""The parts of BatchRL-MTF's step: its equations and their derivatives on the explicit passes.

Letters are :mod:`training.policies.batchrl_mtf`'s; ``d_x`` is the loss's derivative by x. s, a, sa = (s, a),
z and x are [B, ·] in the precision of the products.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from training.policies.networks import standardise
from training.policies.passes import Net, Room, back, by_input, hidden, hidden_of_each, out, room, rough_out
from training.policies.products import compiled
from training.trajectories import Transitions

_ROUNDED = 8  # a multiple of which is the number of s' with candidates
_NOISE = 15_485_863  # between the seeds of two steps


class Nets(NamedTuple):
    """All MLPs of a step."""

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


class Rows(NamedTuple):
    """B transitions as a step reads them; s and s' are standardised."""

    rows: Tensor  # int64[B], of the transitions
    sa: Tensor  # [B, d + k]
    a: Tensor  # float32[B, k]
    r: Tensor  # float32[B]
    done: Tensor  # float32[B]
    on: Tensor  # int64[M]: the rows whose Q' counts, and perhaps others
    next_s: Tensor  # [M, d], of those


class Noise:
    """Standard normals of one step by PyTorch; they depend on seed and step number alone."""

    def __init__(self, seed: int, step: int, device: torch.device, dtype: torch.dtype) -> None:
        self._source = torch.Generator(device).manual_seed(seed + _NOISE * (step + 1))
        self._dtype = dtype

    def normal(self, *shape: int) -> Tensor:
        """The next ones, in float32."""
        return torch.randn(*shape, generator=self._source, device=self._source.device)

    def latents(self, clip: float, *shape: int) -> Tensor:
        """The next ones, within ± clip, in the precision of the products."""
        return self.normal(*shape).clamp_(-clip, clip).to(self._dtype)


class Parts:
    """The parts by PyTorch, on any device and in any precision; the nets' parameters stay where they are."""

    exact_gradients = False  # whether gradients are left in float32 at once

    def __init__(self, nets: Nets, noise: type[Noise] = Noise) -> None:
        """``noise``: the same in every precision, so that policies learnt in two of them can be paired."""
        self.nets, self._noise = nets, noise
        self._widest = max(weight.shape[0] for net in nets for weight in net.weights)
        self._dtype, self._device = nets.first.weights[0].dtype, nets.first.weights[0].device

    def noise(self, seed: int, step: int) -> Noise:
        """Of a step, so that the next one can be prepared early."""
        return self._noise(seed, step, self._device, self._dtype)

    def rows(self, data: Transitions, rows: Tensor, mean: Tensor, scale: Tensor) -> Rows:
        """These rows of the transitions, standardised by mean [d] and scale [d]."""

        def standardised(states: Tensor) -> Tensor:
            return standardise(states, mean, scale).to(self._dtype)

        a, done = data.actions.index_select(0, rows), data.dones.index_select(0, rows)
        s = standardised(data.states.index_select(0, rows))
        on = bootstrapped(done)
        next_s = standardised(data.next_states.index_select(0, rows.index_select(0, on)))
        sa = torch.cat([s, a.to(self._dtype)], dim=1)
        return Rows(rows, sa, a, data.rewards.index_select(0, rows), done, on, next_s)

    def shares(self, count: int) -> list[slice]:
        """Of ``count`` states for :meth:`next_values`, so that lanes can take them; at least one."""
        return [slice(0, count // 2), slice(count // 2, count)]

    def generated(self, s: Tensor, z: Tensor) -> Tensor:
        """:func:`generated` by D."""
        return generated(self.nets.decoder, s, z)

    def next_values(self, s: Tensor, x: Tensor, rho: float, frozen: bool) -> Tensor:
        """:func:`next_values` by the targets; ``frozen``: x are actions."""
        nets = self.nets
        space = room(x.shape[0] * x.shape[1] * self._widest, x.dtype, x.device)
        return next_values(
            None if frozen else nets.decoder,
            nets.target_perturbation,
            nets.target_first,
            nets.target_second,
            s,
            x,
            rho,
            space,
        )

    def generator_gradient(
        self, sa: Tensor, a: Tensor, noise: Tensor, kl_weight: float
    ) -> tuple[Tensor, Tensor]:
        """:func:`generator_gradient` of E and D."""
        return generator_gradient(self.nets.encoder, self.nets.decoder, sa, a, noise, kl_weight)

    def perturbation_gradient(self, s: Tensor, a: Tensor, rho: float) -> Tensor:
        """:func:`perturbation_gradient` by Q_1."""
        return perturbation_gradient(self.nets.perturbation, self.nets.first, s, a, rho)

    def critic_gradient(self, j: int, sa: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`critic_gradient` of Q_1 (j = 0) or Q_2."""
        return critic_gradient(self.nets.second if j else self.nets.first, sa, y)
