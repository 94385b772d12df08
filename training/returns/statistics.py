"""Sufficient statistics of session returns: sums over rows that add up over days and clusters of users.

A row is (z, y, weight): features z of state and action, and the return-to-go y from there. Of a session
whose deviation was drawn once, and of one that was not explored on, only the first request is a row: what
comes later in it has been selected by its own weights (who is still there liked them). Where every request
drew its own, all are rows; the effect of one request is a session's share of the whole, so its action's
features count 1 / L, with L the mean length: θ then is the effect of holding the weights over the session
everywhere, and logs of both kinds add up.

A reward's parts share Σ z zᵀ, so one pass gives the statistics of every weighting of them
(:class:`Parts`): a sweep over what the reward asks for costs no further look at the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

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


@dataclass(frozen=True)
class Parts:
    """Statistics of the whole return and of its time part, of one pass: their ``zz`` is the same array.

    The time part is play time and integrity (``watch_rewards``); the rest of eq. (2), what users did, is the
    interaction part. ``cross`` is Σ y y_time.
    """

    whole: Statistics
    time: Statistics
    cross: Float64Array  # [clusters]

    def leaning(self, factor: float) -> Statistics:
        """Of the reward whose interaction part counts ``factor``: y_time + factor · y_interaction."""
        return self._weighted(factor, 1.0 - factor)

    @property
    def interaction(self) -> Statistics:
        """Of the interaction part alone."""
        return self._weighted(1.0, -1.0)

    def _weighted(self, whole: float, time: float) -> Statistics:
        """Of whole · y + time · y_time."""
        return Statistics(
            self.whole.zz,
            whole * self.whole.zy + time * self.time.zy,
            whole**2 * self.whole.yy + 2.0 * whole * time * self.cross + time**2 * self.time.yy,
            self.whole.rows,
        )


def returns_to_go(data: Transitions, gamma: float, rewards: Tensor | None = None) -> Float64Array:
    """Σ_{u ≥ t} γ^{u−t} r_u of every row, float64[N]; of other ``rewards`` [N] than the data's where given.

    A session counts with the rows that are there: of one that was cut, with what it brought until then.
    """
    sessions = data.sessions.numpy()
    order = np.lexsort((data.steps.numpy(), sessions))
    begins = np.flatnonzero(np.diff(sessions[order], prepend=-1))
    lengths = np.diff(begins, append=len(order))
    longest_first = np.argsort(-lengths, kind="stable")
    begins, lengths = begins[longest_first], lengths[longest_first]
    to_go = (data.rewards if rewards is None else rewards).numpy().astype(np.float64)[order]
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
    zz, (zy,), (yy,), rows = _pass(features, data, [y], [y * y])
    return Statistics(zz, zy, yy, rows)


def of_parts(features: Features, data: Transitions, gamma: float = 1.0) -> Parts:
    """The same pass for both parts of the reward; ``whole`` is :func:`of_transitions`, bit for bit.

    Raises ValueError where ``data`` was loaded without its ``watch_rewards``.
    """
    if data.watch_rewards is None:
        raise ValueError("these transitions do not know the time part of their rewards")
    y, time = returns_to_go(data, gamma), returns_to_go(data, gamma, data.watch_rewards)
    zz, (zy, zy_time), (yy, yy_time, cross), rows = _pass(
        features, data, [y, time], [y * y, time * time, y * time]
    )
    return Parts(Statistics(zz, zy, yy, rows), Statistics(zz, zy_time, yy_time, rows), cross)


def _pass(
    features: Features, data: Transitions, targets: Sequence[Float64Array], squares: Sequence[Float64Array]
) -> tuple[Float64Array, list[Float64Array], list[Float64Array], Float64Array]:
    """By cluster Σ z zᵀ, Σ z y of each of ``targets``, the sums of ``squares``, and the number of rows."""
    steps, by_session = data.steps.numpy(), data.by_session.numpy()
    drawn_each = np.isfinite(data.log_densities.numpy()) & ~by_session
    rows = np.flatnonzero((steps == 0) | drawn_each)
    length = len(data) / max(int((steps == 0).sum()), 1)
    share = np.where(drawn_each, 1.0 / length, 1.0)
    clusters = cluster_of(data.users.numpy())
    p = features.width
    zz, zy = np.zeros((CLUSTERS, p, p)), [np.zeros((CLUSTERS, p)) for _ in targets]
    rows = rows[np.argsort(clusters[rows], kind="stable")]
    for cluster in range(CLUSTERS):
        own = rows[clusters[rows] == cluster]
        for part in np.array_split(own, max(1, -(-len(own) // _PART))):
            z = features.rows(data.states[part].numpy(), data.actions[part].numpy())
            z[:, features.action.start :] *= share[part, None]
            zz[cluster] += z.T @ z
            for sums, y in zip(zy, targets, strict=True):
                sums[cluster] += z.T @ y[part]
    count = np.bincount(clusters[rows], minlength=CLUSTERS).astype(float)
    yy = [np.bincount(clusters[rows], square[rows], minlength=CLUSTERS).astype(float) for square in squares]
    return zz, zy, yy, count


def cluster_of(users: np.ndarray, clusters: int = CLUSTERS) -> np.ndarray:
    """int64[N] in [0, clusters): a user is always in the same one (Knuth's multiplicative hash)."""
    mixed = (users.astype(np.uint64) * np.uint64(2_654_435_761)) >> np.uint64(16)
    return (mixed % np.uint64(clusters)).astype(np.int64)
