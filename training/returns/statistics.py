"""Sufficient statistics of session returns: sums over rows that add up over days and clusters of users.

A row is (z, y, weight): features z of state and action, and the return-to-go y from there. Of a session
whose deviation was drawn once, and of one that was not explored on, only the first request is a row: what
comes later in it has been selected by its own weights (who is still there liked them). Where every request
drew its own, all are rows; the effect of one request is a session's share of the whole, so its action's
features count 1 / L, with L the mean length: θ then is the effect of holding the weights over the session
everywhere, and logs of both kinds add up.
"""

from dataclasses import dataclass

import numpy as np

from training.contract.arrays import Float64Array
from training.returns.features import Features
from training.trajectories import Transitions

CLUSTERS = 16  # hash clusters of users: rows of one are not independent
_PART = 4_096  # rows whose features are in memory at once


@dataclass(frozen=True)
class Statistics:
    """Σ z zᵀ, Σ z y, Σ y² and the number of rows, of each cluster of users; those of others may be added."""

    zz: Float64Array  # [clusters, p, p]
    zy: Float64Array  # [clusters, p]
    yy: Float64Array  # [clusters]
    rows: Float64Array  # [clusters]

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(self.zz + other.zz, self.zy + other.zy, self.yy + other.yy, self.rows + other.rows)

    def scaled(self, weight: float) -> "Statistics":
        """The same, every row counting ``weight``: how an older day fades."""
        return Statistics(self.zz * weight, self.zy * weight, self.yy * weight, self.rows * weight)

    def of(self, clusters: np.ndarray) -> "Statistics":
        """Of some clusters alone, bool[clusters]."""
        keep = clusters.astype(float)
        return Statistics(
            self.zz * keep[:, None, None], self.zy * keep[:, None], self.yy * keep, self.rows * keep
        )


def returns_to_go(data: Transitions, gamma: float) -> Float64Array:
    """Σ_{u ≥ t} γ^{u−t} r_u of every row, float64[N].

    A session counts with the rows that are there: of one that was cut, with what it brought until then.
    """
    sessions = data.sessions.numpy()
    order = np.lexsort((data.steps.numpy(), sessions))
    begins = np.flatnonzero(np.diff(sessions[order], prepend=-1))
    lengths = np.diff(begins, append=len(order))
    longest_first = np.argsort(-lengths, kind="stable")
    begins, lengths = begins[longest_first], lengths[longest_first]
    to_go = data.rewards.numpy().astype(np.float64)[order]
    # from the last request but one of the longest sessions to the first: no power of γ is divided by
    for place in range(int(lengths.max(initial=1)) - 2, -1, -1):
        at = begins[: np.searchsorted(-lengths, -(place + 1))] + place
        to_go[at] += gamma * to_go[at + 1]
    found = np.empty_like(to_go)
    found[order] = to_go
    return found


def of_transitions(features: Features, data: Transitions, gamma: float = 1.0) -> Statistics:
    """The statistics of all rows of ``data``; memory is that of a part whatever their number."""
    y = returns_to_go(data, gamma)
    steps, by_session = data.steps.numpy(), data.by_session.numpy()
    drawn_each = np.isfinite(data.log_densities.numpy()) & ~by_session
    rows = np.flatnonzero((steps == 0) | drawn_each)
    length = len(data) / max(int((steps == 0).sum()), 1)
    share = np.where(drawn_each, 1.0 / length, 1.0)
    clusters = cluster_of(data.users.numpy())
    p = features.width
    zz, zy = np.zeros((CLUSTERS, p, p)), np.zeros((CLUSTERS, p))
    rows = rows[np.argsort(clusters[rows], kind="stable")]
    for cluster in range(CLUSTERS):
        own = rows[clusters[rows] == cluster]
        for part in np.array_split(own, max(1, -(-len(own) // _PART))):
            z = features.rows(data.states[part].numpy(), data.actions[part].numpy())
            z[:, features.action.start :] *= share[part, None]
            zz[cluster] += z.T @ z
            zy[cluster] += z.T @ y[part]
    count = np.bincount(clusters[rows], minlength=CLUSTERS).astype(float)
    yy = np.bincount(clusters[rows], weights=y[rows] ** 2, minlength=CLUSTERS).astype(float)
    return Statistics(zz, zy, yy, count)


def cluster_of(users: np.ndarray, clusters: int = CLUSTERS) -> np.ndarray:
    """int64[N] in [0, clusters): a user is always in the same one (Knuth's multiplicative hash)."""
    mixed = (users.astype(np.uint64) * np.uint64(2_654_435_761)) >> np.uint64(16)
    return (mixed % np.uint64(clusters)).astype(np.int64)
