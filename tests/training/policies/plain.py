"""Plain recomputations, shared by the tests of the learners."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.policies.learner import Learner
from training.policies.networks import standardisation, standardise
from training.trajectories import Transitions


def mlp(layers: Sequence[nn.Module], *inputs: Tensor) -> Tensor:
    """A ReLU network on concatenated inputs."""
    h = torch.cat(inputs, dim=-1)
    for index, layer in enumerate(layers):
        h = layer(F.relu(h) if index else h)
    return h


def q_of(critics: nn.Module, s: Tensor, a: Tensor) -> list[Tensor]:
    """Q_1 and Q_2, each [B]."""
    return [mlp(q.layers, s, a).squeeze(-1) for q in critics.q]


def batch_of(learner: Learner, data: Transitions) -> tuple[Tensor, ...]:
    """s, a, r, s' and done of the learner's latest step, standardised again."""
    rows = learner.batch(learner.step_count - 1).rows
    of_states = standardisation(data.states)
    s, next_s = (standardise(x, *of_states)[rows] for x in (data.states, data.next_states))
    return s, data.actions[rows], data.rewards[rows], next_s, data.dones[rows]


def assert_adam_step(ours: nn.Module, before: nn.Module, loss: Tensor, lr: float) -> None:
    """``ours`` is ``before`` after Adam's first step on ``loss``."""
    parameters = list(before.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    torch.optim.Adam(parameters, lr).step()
    for one, other in zip(ours.parameters(), parameters, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
