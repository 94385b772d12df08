"""What sessions are known to have returned: nothing is estimated here."""

import numpy as np

from training.contract.arrays import Float64Array
from training.trajectories.transitions import Transitions


def whole_sessions(data: Transitions, gamma: float) -> Float64Array:
    """Σ_t γ^t r_t of the n sessions that are there from step 0 to their known end, float64[n], by number.

    A session without its first request, with a gap, or whose end is not known is left out. Where many are
    cut, as by a platform's limit, what is left is of the shorter ones.
    """
    numbers, session = np.unique(data.sessions.numpy(), return_inverse=True)
    steps, n = data.steps.numpy(), len(numbers)
    rows = np.bincount(session, minlength=n)
    last = np.full(n, -1)
    np.maximum.at(last, session, steps)
    ended = np.bincount(session, weights=data.dones.numpy(), minlength=n) > 0
    discounted = gamma**steps * data.rewards.numpy().astype(np.float64)
    returns = np.bincount(session, weights=discounted, minlength=n).astype(np.float64)
    return returns[ended & (rows == last + 1)]
