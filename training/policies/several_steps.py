"""Targets of several steps: the rewards of the next n requests as logged, and Q' after them.

y = Σ_{i<m} γ^i r_{t+i} + γ^m (1 − done) Q'(s_{t+m}, ·), with m = n, or what is left of the session in the
log. The paper's eq. (7) is n = 1. A larger n credits an action with what it did to the user beyond what the
next state shows, and passes rewards on faster; it values the m − 1 requests in between as the log's policy
served them (nothing corrects for that), and its sums are noisier.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.trajectories import Transitions


def over_steps(data: Transitions, n: int, gamma: float) -> Transitions:
    """The same rows with the rewards of up to n requests, and what follows the last of them as s'.

    r + γ (1 − done) Q'(s') of what is returned is the target above: ``dones`` is 1 − γ^(m−1) (1 − done), the
    share of the bootstrap that is lost. Rows may lie in any order; a request whose successor is not in
    the data ends its sum. ``item_rewards`` and ``reward_factors`` stay those of the row's own request.
    """
    if n == 1:
        return data
    sessions, steps = data.sessions.cpu().numpy(), data.steps.cpu().numpy()
    order = np.lexsort((steps, sessions))
    follows = (np.diff(sessions[order]) == 0) & (np.diff(steps[order]) == 1)
    successor = np.full(len(order), -1)
    successor[order[:-1][follows]] = order[1:][follows]

    last, m = np.arange(len(order)), np.ones(len(order), dtype=np.int64)
    rewards = {
        name: column.cpu().double()
        for name in ("rewards", "watch_rewards")
        if (column := getattr(data, name)) is not None
    }
    sums = {name: column.clone() for name, column in rewards.items()}
    for i in range(1, n):
        on = np.flatnonzero((m == i) & (successor[last] >= 0))
        last[on] = successor[last[on]]
        m[on] += 1
        for name, column in rewards.items():
            sums[name][on] += gamma**i * column[last[on]]

    def at_last(column: Tensor) -> Tensor:
        return column[torch.from_numpy(last).to(column.device)]

    lost = 1.0 - torch.from_numpy(gamma ** (m - 1.0)) * (1.0 - at_last(data.dones).cpu().double())
    means = data.next_action_means
    return replace(
        data,
        **{name: total.to(data.rewards) for name, total in sums.items()},
        next_states=at_last(data.next_states),
        next_actions=at_last(data.next_actions),
        next_action_means=None if means is None else at_last(means),
        dones=lost.to(data.dones),
    )
