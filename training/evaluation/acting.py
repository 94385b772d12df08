"""What policies do on the logged states: computed once, read by every estimator."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.contract.policy import Policy
from training.trajectories import Transitions


@dataclass(frozen=True)
class Actions:
    """What one policy does on the data: at s, and at s', each float32[N, k]."""

    here: Tensor
    next: Tensor


def logged(data: Transitions) -> Actions:
    """What was served: the logging policy, whatever it was."""
    return Actions(data.actions, data.next_actions)


def act(data: Transitions, policies: Mapping[str, Policy]) -> dict[str, Actions]:
    """Every policy's actions on the data.

    Nearly every s' is the s of the next row, so each distinct state is acted on once.
    """
    both = torch.cat([data.states, data.next_states]).numpy()
    states, where = np.unique(both, axis=0, return_inverse=True)
    out = {}
    for name, policy in policies.items():
        actions = torch.from_numpy(policy.act_in_parts(states)[where.ravel()])
        out[name] = Actions(actions[: len(data)], actions[len(data) :])
    return out
