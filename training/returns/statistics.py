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

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

from training.contract.arrays import Float64Array
from training.returns.features import Features
from training.trajectories import Transitions
from training.trajectories.requests import InitialStates, Log, Requests, Spread, Targets, log_of

CLUSTERS = 16  # hash clusters of users: rows of one are not independent
_PART = 4_096  # rows whose features are in memory at once
_BLOCK = CLUSTERS * _PART  # rows that are gathered before they are summed


@dataclass(frozen=True)
class Statistics:
    """Σ z zᵀ, Σ z y, Σ y² and the number of rows, of each cluster of users; those of others may be added."""

    zz: Float64Array  # [clusters, p, p]
    zy: Float64Array  # [clusters, p]
    yy: Float64Array  # [clusters]
    rows: Float64Array  # [clusters]

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(self.zz + other.zz, self.zy + other.zy, self.yy + other.yy, self.rows + other.rows)


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


@dataclass(frozen=True)
class Sums:
    """Of m targets by cluster Σ z zᵀ, Σ z y, Σ y yᵀ and the number of rows; those of other parts may be
    added."""

    zz: Float64Array  # [clusters, p, p]
    zy: Float64Array  # [m, clusters, p]
    yy: Float64Array  # [m, m, clusters]
    rows: Float64Array  # [clusters]

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.zz + other.zz, self.zy + other.zy, self.yy + other.yy, self.rows + other.rows)

    @property
    def whole(self) -> Statistics:
        return Statistics(self.zz, self.zy[0], self.yy[0, 0], self.rows)

    @property
    def parts(self) -> Parts:
        return Parts(self.whole, Statistics(self.zz, self.zy[1], self.yy[1, 1], self.rows), self.yy[0, 1])


class _Rows(NamedTuple):
    """n rows of the model: states, actions, share of the session [n], cluster [n] and returns [n, m]."""

    states: np.ndarray
    actions: np.ndarray
    share: np.ndarray
    clusters: np.ndarray
    y: Float64Array


@dataclass(frozen=True)
class TakeSums:
    """Takes the sums of parts of a log whose sessions have ``length`` requests on average; memory is that of
    a block of rows whatever their number."""

    features: Features
    length: float
    targets: int

    def __call__(self, parts: Iterable[Requests]) -> Sums:
        p, m = self.features.width, self.targets
        sums = Sums(
            np.zeros((CLUSTERS, p, p)),
            np.zeros((m, CLUSTERS, p)),
            np.zeros((m, m, CLUSTERS)),
            np.zeros(CLUSTERS),
        )
        block: list[_Rows] = []
        for part in parts:
            block.append(self._rows(part))
            if sum(len(rows.share) for rows in block) >= _BLOCK:
                self._add(sums, block)
                block = []
        self._add(sums, block)
        return sums

    def _rows(self, part: Requests) -> _Rows:
        rows = np.flatnonzero(part.first | part.drawn_each)
        return _Rows(
            part.states[rows],
            part.actions[rows],
            np.where(part.drawn_each[rows], 1.0 / self.length, 1.0),
            cluster_of(part.users[rows]),
            part.to_go[:, rows].T,
        )

    def _add(self, sums: Sums, block: list[_Rows]) -> None:
        """To ``sums``, in place. Of one cluster at a time: the products are of thousands of rows, then."""
        if not block:
            return
        states, actions, share, clusters, y = (np.concatenate(column) for column in zip(*block, strict=True))
        order = np.argsort(clusters, kind="stable")
        bounds = np.searchsorted(clusters[order], np.arange(CLUSTERS + 1))
        for cluster in range(CLUSTERS):
            own = order[bounds[cluster] : bounds[cluster + 1]]
            for rows in np.array_split(own, max(1, -(-len(own) // _PART))):
                z = self.features.rows(states[rows], actions[rows])
                if (share[rows] != 1.0).any():
                    z[:, self.features.action.start :] *= share[rows, None]
                sums.zz[cluster] += z.T @ z
                for target in range(self.targets):
                    sums.zy[target, cluster] += z.T @ y[rows, target]
        sums.rows[:] += np.bincount(clusters, minlength=CLUSTERS)
        for i, j in np.ndindex(self.targets, self.targets):
            sums.yy[i, j] += np.bincount(clusters, y[:, i] * y[:, j], minlength=CLUSTERS)


@dataclass(frozen=True)
class Entries:
    """What the first pass over a log finds: the sums of every entry, the states' spread among all requests,
    and the initial states that were asked for."""

    sums: Sums
    spread: Spread
    initial: InitialStates

    def __add__(self, other: "Entries") -> "Entries":
        return Entries(self.sums + other.sums, self.spread + other.spread, self.initial + other.initial)


@dataclass(frozen=True)
class TakeEntries:
    """Takes them; ``initial`` int64[m] are numbers of sessions, ascending."""

    sums: TakeSums
    initial: np.ndarray

    def __call__(self, parts: Iterable[Requests]) -> Entries:
        nothing = np.zeros((0, self.sums.features.d), dtype=np.float32)
        spread, initial = Spread.of(nothing), [InitialStates(self.initial[:0], nothing)]

        def seen() -> Iterator[Requests]:
            nonlocal spread
            for part in parts:
                spread += Spread.of(part.states)
                initial.append(InitialStates.of(part, self.initial))
                yield part

        sums = self.sums(seen())
        return Entries(sums, spread, reduce(operator.add, initial))


def of_log(features: Features, log: Log, of: Targets) -> Sums:
    """The sums of all rows of a log."""
    return log.total(of, TakeSums(features, log.counts(of).length, 1 + of.parts))


def entries_of_log(features: Features, log: Log, of: Targets, initial: np.ndarray) -> Entries:
    return log.total(of, TakeEntries(TakeSums(features, log.counts(of).length, 1 + of.parts), initial))


def of_transitions(features: Features, data: Transitions | Log, gamma: float = 1.0) -> Statistics:
    """The statistics of all rows of ``data``; memory is that of a part whatever their number."""
    return of_log(features, log_of(data), Targets(gamma)).whole


def of_parts(features: Features, data: Transitions | Log, gamma: float = 1.0) -> Parts:
    """The same pass for both parts of the reward; ``whole`` is :func:`of_transitions`, bit for bit.

    Raises ValueError where ``data`` was loaded without its ``watch_rewards``.
    """
    return of_log(features, log_of(data), Targets(gamma, parts=True)).parts


def cluster_of(users: np.ndarray, clusters: int = CLUSTERS) -> np.ndarray:
    """int64[N] in [0, clusters): a user is always in the same one (Knuth's multiplicative hash)."""
    mixed = (users.astype(np.uint64) * np.uint64(2_654_435_761)) >> np.uint64(16)
    return (mixed % np.uint64(clusters)).astype(np.int64)
