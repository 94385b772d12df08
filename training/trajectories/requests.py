"""A log as what is summed over it sees it: parts of its requests, each with the return from there on.

What a :class:`Log` gives does not depend on where it lies: in memory (:class:`InMemory`), or in a window's
exports (:class:`training.trajectories.shares.WindowLog`), whose sums may be taken in several processes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from training.contract.arrays import Float64Array
from training.contract.sums import S
from training.trajectories.to_go import returns_to_go
from training.trajectories.transitions import Transitions

_PART = 65_536  # requests of a log in memory that are seen at once
_CACHED = 2_048  # states that stay in the processor's cache


class Targets(NamedTuple):
    """Which returns-to-go are asked for: discounted by ``gamma``; with ``parts`` also the time part's."""

    gamma: float
    parts: bool = False


@dataclass(frozen=True)
class Requests:
    """n requests of a log, of any sessions, in the order of the log."""

    states: np.ndarray  # float32[n, d]
    actions: np.ndarray  # float32[n, k]
    users: np.ndarray  # int64[n]
    first: np.ndarray  # bool[n], of its session
    drawn_each: np.ndarray  # bool[n], its own deviation was drawn for it
    to_go: Float64Array  # [1, n], of the whole reward; with parts [2, n], also of its time part
    sessions_before: int  # sessions that begin in the log before these requests


Work = Callable[[Iterable[Requests]], S]  # the same sum whatever the order of the parts, but for rounding


@dataclass(frozen=True)
class Spread:
    """``count`` states, their ``mean`` [d], and ``squares`` [d], the sums of squares about it."""

    count: int
    mean: Float64Array
    squares: Float64Array

    @classmethod
    def of(cls, states: np.ndarray) -> "Spread":
        found = cls(0, np.zeros(states.shape[1]), np.zeros(states.shape[1]))
        for at in range(0, len(states), _CACHED):
            values = states[at : at + _CACHED].astype(np.float64)
            mean = values.mean(axis=0)
            values -= mean
            found += cls(len(values), mean, np.einsum("ij,ij->j", values, values))
        return found

    def __add__(self, other: "Spread") -> "Spread":
        """Chan, Golub and LeVeque 1979: nothing cancels however far the mean is from zero."""
        count = self.count + other.count
        if not count:
            return self
        apart, share = other.mean - self.mean, other.count / count
        return Spread(
            count,
            self.mean + share * apart,
            self.squares + other.squares + self.count * share * np.square(apart),
        )

    @property
    def deviation(self) -> Float64Array:
        """float64[d], of a sample."""
        found: Float64Array = np.sqrt(self.squares / max(self.count - 1, 1))
        return found


@dataclass(frozen=True)
class Counts:
    """What has to be known of a whole log before sums over it can be taken."""

    requests: int
    sessions: int  # that begin in it

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.requests + other.requests, self.sessions + other.sessions)

    @property
    def length(self) -> float:
        """Requests a session."""
        return self.requests / max(self.sessions, 1)


class Log(Protocol):
    """The usable requests of all arms, over some days."""

    def width(self) -> int:
        """Of its states."""
        ...

    def counts(self, of: Targets) -> Counts: ...

    def total(self, of: Targets, work: Work[S]) -> S:
        """The sum of ``work`` over parts of the log: equal but for rounding however it is parted."""
        ...


class InMemory:
    """A log that is there; of some users' sessions only, where ``kept`` bool[N] tells their rows.

    Raises ValueError where parts are asked for that it does not know.
    """

    def __init__(self, data: Transitions, kept: np.ndarray | None = None) -> None:
        self._data, self._kept = data, np.ones(len(data), dtype=bool) if kept is None else kept
        self._to_go: dict[Targets, Float64Array] = {}

    def width(self) -> int:
        return self._data.states.shape[1]

    def counts(self, of: Targets) -> Counts:
        return Counts(int(self._kept.sum()), int(((self._data.steps.numpy() == 0) & self._kept).sum()))

    def total(self, of: Targets, work: Work[S]) -> S:
        return work(self._parts(of))

    def _parts(self, of: Targets) -> Iterator[Requests]:
        data = self._data
        if of.parts and data.watch_rewards is None:
            raise ValueError("these transitions do not know the time part of their rewards")
        if of not in self._to_go:
            rewards = [data.rewards, data.watch_rewards][: 1 + of.parts]
            self._to_go[of] = np.stack([returns_to_go(data, of.gamma, one) for one in rewards])
        first = data.steps.numpy() == 0
        drawn_each = np.isfinite(data.log_densities.numpy()) & ~data.by_session.numpy()
        begun = 0
        for at in range(0, max(len(data), 1), _PART):
            own = slice(at, at + _PART)
            kept: np.ndarray | slice = self._kept[own]
            if self._kept[own].all():
                kept = slice(None)  # a view
            yield Requests(
                data.states[own].numpy()[kept],
                data.actions[own].numpy()[kept],
                data.users[own].numpy()[kept],
                first[own][kept],
                drawn_each[own][kept],
                self._to_go[of][:, own][:, kept],
                begun,
            )
            begun += int(first[own][kept].sum())


def log_of(data: Transitions | Log) -> Log:
    return InMemory(data) if isinstance(data, Transitions) else data


@dataclass(frozen=True)
class InitialStates:
    """States [n, d] of some sessions' first requests, and ``numbers`` [n] of these sessions in the log."""

    numbers: np.ndarray
    states: np.ndarray

    def __add__(self, other: "InitialStates") -> "InitialStates":
        return InitialStates(
            np.concatenate([self.numbers, other.numbers]), np.concatenate([self.states, other.states])
        )

    @classmethod
    def of(cls, part: Requests, wanted: np.ndarray) -> "InitialStates":
        """Of those sessions, ascending ``wanted`` [m], that begin in the part."""
        rows = np.flatnonzero(part.first)
        low, high = np.searchsorted(wanted, part.sessions_before + np.array([0, len(rows)]))
        own = wanted[low:high]
        return cls(own, part.states[rows[own - part.sessions_before]])
