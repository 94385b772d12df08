"""Which states would a policy meet? The log's users, with sessions that were ranked as the policy ranks.

A state holds what was felt and predicted in the session so far, which is what its weights have made of it. So
the log's states are those of the logged weights. Where a session's deviation was drawn once they even give it
away, and a policy that was learnt close to the log answers each of them with what was done there: at the
log's states it is a mixture of all that was tried, whatever it does once it serves.

So a policy is followed through logged sessions. It acts in the first state; what its user then feels is taken
from a logged session, one of the nearest by the actions so far (their sums, decayed as the state's are); it
acts again; and so on, for as many requests as the user's own session had. The entries of the state that are
not of the session stay the user's. All policies are followed from the same sessions with the same luck.
"""

from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from training.contract.arrays import Float32Array
from training.contract.session import DECAY
from training.contract.state import StateSpec
from training.trajectories import Transitions

_NEAREST = 5  # sessions, of which one is drawn
_MOST = 100  # requests that a session is followed for

Act = Callable[[Float32Array], Float32Array]


class Visited:
    """Sessions of ``data`` that policies are followed through, of ``rows`` rows about. A session begins where
    its rows do."""

    def __init__(self, data: Transitions, spec: StateSpec, rows: int, seed: int) -> None:
        self._seed, self._states = seed, data.states.numpy()
        self._of_session = np.repeat(
            [feature.source == "session" for feature in spec.features],
            [feature.width for feature in spec.features],
        )
        sessions, actions = data.sessions.numpy(), data.actions.numpy().astype(np.float64)
        order = np.lexsort((data.steps.numpy(), sessions))
        begins = np.flatnonzero(np.diff(sessions[order], prepend=-1))
        lengths = np.minimum(np.diff(begins, append=len(order)), _MOST)
        # int64[sessions, steps]: the row of every step, -1 where the session was over
        steps = np.arange(lengths.max(initial=0))
        there = steps < lengths[:, None]
        self._rows = np.where(there, order[np.minimum(begins[:, None] + steps, len(order) - 1)], -1)
        chosen = np.random.default_rng(seed).permutation(len(begins))
        self._followed = chosen[: int(np.searchsorted(np.cumsum(lengths[chosen]), rows)) + 1]
        # by step, the sessions that had another after it, and their decayed actions up to it
        self._going_on: list[tuple[np.ndarray, cKDTree]] = []
        decayed = np.zeros((len(begins), actions.shape[1]))
        for step in steps[:-1]:
            goes_on = np.flatnonzero(there[:, step + 1])
            decayed[goes_on] = DECAY * decayed[goes_on] + actions[self._rows[goes_on, step]]
            self._going_on.append((goes_on, cKDTree(decayed[goes_on])))

    @property
    def sessions(self) -> np.ndarray:
        """int64[n]: which of the sessions that are followed each row of :meth:`by` is of."""
        there = self._rows[self._followed] >= 0
        return np.nonzero(there.T)[1]

    def by(self, act: Act) -> tuple[Float32Array, Float32Array]:
        """The states float32[n, d] that a policy meets and what it does there, float32[n, k]: n is the same
        for every policy, and row i is of the same user's same request (:attr:`sessions`)."""
        rng, followed = np.random.default_rng([self._seed, 1]), self._followed
        states = self._states[self._rows[followed, 0]]
        met, done = [states], [act(states)]
        decayed = done[0].astype(np.float64)
        for step, (goes_on, nearest) in enumerate(self._going_on, 1):
            stays = self._rows[followed, step] >= 0
            followed, decayed = followed[stays], decayed[stays]
            if not len(followed):
                break
            count = min(_NEAREST, len(goes_on))
            near = nearest.query(decayed, k=range(1, count + 1))[1]
            like = goes_on[near[np.arange(len(near)), rng.integers(0, count, len(near))]]
            own, felt = (self._states[self._rows[whose, step]] for whose in (followed, like))
            states = np.where(self._of_session, felt, own)
            met.append(states)
            done.append(act(states))
            decayed = DECAY * decayed + done[-1]
        return np.concatenate(met), np.concatenate(done)
