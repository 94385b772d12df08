"""What sessions are known to have returned: nothing is estimated here."""

from typing import NamedTuple

import numpy as np

from training.trajectories.transitions import Transitions


class WholeSessions(NamedTuple):
    """n sessions that are there from step 0 to their known end, in the order of their numbers."""

    returns: np.ndarray  # float64[n], Σ_t γ^t r_t
    users: np.ndarray  # int64[n]
    arms: np.ndarray  # int64[n], into arm_names; -1 where the session was not of one arm throughout


def whole_sessions(data: Transitions, gamma: float) -> WholeSessions:
    """A session without its first request, with a gap, or whose end is not known is left out.

    Where many are cut, as by a platform's limit, what is left is of the shorter ones.
    """
    numbers, session = np.unique(data.sessions.numpy(), return_inverse=True)
    steps, arms, n = data.steps.numpy(), data.arms.numpy(), len(numbers)
    rows = np.bincount(session, minlength=n)
    last = np.full(n, -1)
    np.maximum.at(last, session, steps)
    ended = np.bincount(session, weights=data.dones.numpy(), minlength=n) > 0
    whole = ended & (rows == last + 1)
    discounted = gamma**steps * data.rewards.numpy().astype(np.float64)
    users, arm = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    users[session], arm[session] = data.users.numpy(), arms
    arm[session[arms != arm[session]]] = -1
    returns = np.bincount(session, weights=discounted, minlength=n)
    return WholeSessions(returns[whole], users[whole], arm[whole])


def known_returns(
    data: Transitions, gamma: float, version: str | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each arm, the returns float64[n] of its whole sessions and their users int64[n], by arm's name.

    Those of the static and of the champion arm are what these policies *are worth* on the log's users; with
    ``version``, only of sessions that one policy served throughout (``"static"`` for static weights). Arms
    without such a session are left out. Raises ValueError for a version where the data knows none.
    """
    if version is not None:
        if data.versions is None:
            raise ValueError("these transitions do not know their policies' versions")
        number = data.version_names.index(version) if version in data.version_names else -1
        data = data.take(data.versions == number)  # of a session of two, what is left is not whole
    found = whole_sessions(data, gamma)
    of_arm = {name: found.arms == place for place, name in enumerate(data.arm_names)}
    return {name: (found.returns[own], found.users[own]) for name, own in of_arm.items() if own.any()}
