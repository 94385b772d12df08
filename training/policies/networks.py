"""ReLU networks on a state and something beside it: an action, or the generator's latent."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.policies.products import mlp

# A state entry is clipped to this many training deviations, here and in the exported actor: a category
# or a count never seen in training must not throw the networks far out of their data.
STATE_CLIP = 10.0
_LEAST_DEVIATION = 1e-2


def standardisation(states: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale, each float32[d], of states [N, d]; a constant feature gets scale 1.

    The deviation has a floor, so that a flag that is set for one user in 100,000 does not become a
    value of 300. In parts, as all states in double precision may be more than the memory.
    """
    parts = states.split(65_536)
    mean = sum(part.double().sum(dim=0) for part in parts) / len(states)
    deviation = (sum((part.double() - mean).square_().sum(dim=0) for part in parts) / len(states)).sqrt()
    scale = torch.where(deviation < 1e-6, 1.0, deviation.clamp(min=_LEAST_DEVIATION))
    return mean.float(), scale.float()


def standardise(states: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return ((states - mean) / scale).clamp(-STATE_CLIP, STATE_CLIP)


class StateMLP(nn.Module):
    """MLP of the concatenation (s, x), for one x or several x of each state.

    The first layer is linear in (s, x), so for several x its part of s is computed once a state and
    added to the part of each x: n candidates do not repeat the (wider) state n times.
    """

    layers: Any  # an nn.ModuleList of nn.Linear, which to type checkers holds modules of any kind

    def __init__(self, state: int, beside: int, hidden: Sequence[int], out: int) -> None:
        super().__init__()
        widths = [state + beside, *hidden, out]
        self.state_width = state
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, s: Tensor, x: Tensor, fixed: bool = False) -> Tensor:
        """s [B, d] and x [B, w] or [B, n, w] to [B, out] or [B, n, out].

        ``fixed`` (for one x a state): gradients reach s and x alone, not the network's parameters.
        """
        if x.dim() == 2:  # one product, whose gradient needs no slices
            return mlp(torch.cat([s, x], dim=1), self.layers, fixed)
        first, *rest = self.layers
        of_state = F.linear(s, first.weight[:, : self.state_width], first.bias)
        h = F.linear(x, first.weight[:, self.state_width :]).add_(of_state[:, None, :])
        return mlp(h.relu_(), rest) if rest else h


class MLP(nn.Module):
    """MLP of x [..., w] to [..., out]."""

    layers: Any  # as above

    def __init__(self, width: int, hidden: Sequence[int], out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([width, *hidden, out]))

    def forward(self, x: Tensor) -> Tensor:
        return mlp(x, self.layers)


class EnsembleMLP(nn.Module):
    """E independent MLPs of (s, x), computed together by batched matrix products.

    Initialised as ``nn.Linear`` is: U(−1/√fan_in, 1/√fan_in).
    """

    def __init__(self, members: int, state: int, beside: int, hidden: Sequence[int], out: int) -> None:
        super().__init__()
        widths = [state + beside, *hidden, out]
        self.state_width = state
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in pairwise(widths):
            bound = 1.0 / math.sqrt(a)
            self.weights.append(torch.empty(members, a, b).uniform_(-bound, bound))
            self.biases.append(torch.empty(members, 1, b).uniform_(-bound, bound))

    def forward(self, s: Tensor, *beside: Tensor) -> tuple[Tensor, ...]:
        """s [E, B, d] and each x [E, B, w] to one [E, B, out] for each x."""
        first, *weights = self.weights
        bias, *biases = self.biases
        of_state = torch.baddbmm(bias, s, first[:, : self.state_width])
        h = torch.cat([torch.baddbmm(of_state, x, first[:, self.state_width :]) for x in beside], dim=1)
        for weight, b in zip(weights, biases, strict=True):
            h = torch.baddbmm(b, h.relu_(), weight)
        return h.chunk(len(beside), dim=1)
