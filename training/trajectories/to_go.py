"""What a session returns from each of its requests on, read from a log's last requests to its first.

A session's return-to-go needs what follows in it, and nothing of other sessions: going backwards, what is
kept from one part of a log to the part before it is a number for each session that is open there. So a log
is read a part at a time, and one that lies in several shares in parallel, once it is known what is
:class:`Ahead` of each.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from training.contract.arrays import Float64Array
from training.contract.errors import DataError
from training.trajectories.transitions import Transitions


class Ahead(NamedTuple):
    """s sessions that go on behind a part of the log, by ascending key."""

    keys: np.ndarray  # uint64[s]
    steps: np.ndarray  # int64[s], of the first request there
    current: np.ndarray  # bool[s], whether that one is of the state specification
    to_go: Float64Array  # [m, s], the returns from there on

    @classmethod
    def nothing(cls, targets: int) -> "Ahead":
        empty = np.zeros(0, dtype=np.int64)
        return cls(empty.astype(np.uint64), empty, empty.astype(bool), np.zeros((targets, 0)))

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of ascending ``keys`` [n] and whether they are there, int64[n] and bool[n]."""
        if not len(self.keys):
            return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return at, self.keys[at] == keys

    def updated(self, newer: "Ahead", over: np.ndarray) -> "Ahead":
        """These sessions, but as ``newer`` has them; without those with keys in ``over``, ascending."""
        stays = ~np.isin(self.keys, over)
        keys = np.concatenate([self.keys[stays], newer.keys])
        order = np.argsort(keys)
        return Ahead(
            keys[order],
            np.concatenate([self.steps[stays], newer.steps])[order],
            np.concatenate([self.current[stays], newer.current])[order],
            np.concatenate([self.to_go[:, stays], newer.to_go], axis=1)[:, order],
        )


class Kept(NamedTuple):
    """Of a part of the log, the rows that count and what their sessions return from there."""

    rows: np.ndarray  # int64[n], ascending
    to_go: Float64Array  # [m, n]


class Backwards:
    """The parts of a log, from the last to the first; ``ahead`` is what is known to follow the next one.

    ``else_ahead`` float64[m]: the returns of what follows a session that is not in ``ahead``.
    """

    def __init__(self, gamma: float, ahead: Ahead, else_ahead: Float64Array) -> None:
        self.gamma, self.ahead, self._else = gamma, ahead, else_ahead

    def part(
        self,
        keys: np.ndarray,
        steps: np.ndarray,
        rewards: Float64Array,
        usable: np.ndarray,
        current: np.ndarray,
        over: np.ndarray,
    ) -> Kept:
        """Rows of a part in any order: ``rewards`` [m, n], all else [n].

        ``over`` tells last requests of their sessions. Kept are the ``usable`` rows but those that are
        followed by a request that is not ``current``. Raises :class:`DataError` for a session whose later
        requests come in an earlier part.
        """
        order = np.argsort(keys, kind="stable")
        of_next = keys[order[1:]] == keys[order[:-1]]
        if (of_next & (steps[order[1:]] < steps[order[:-1]])).any():  # not in the order of time
            order = np.lexsort((steps, keys))
        sorted_keys, sorted_steps, is_current = keys[order], steps[order], current[order]
        begins = np.flatnonzero(np.append(True, ~of_next)[: len(order)])
        lengths = np.diff(begins, append=len(order))
        ends, names = begins + lengths - 1, sorted_keys[begins]
        at, goes_on = self.ahead.find(names)
        if (self.ahead.steps[at[goes_on]] < sorted_steps[ends[goes_on]]).any():
            raise DataError("a session's requests are not in the order of their times")
        next_current = np.append(is_current[1:], True)[: len(order)]
        next_current[ends] = True
        next_current[ends[goes_on]] = self.ahead.current[at[goes_on]]
        there = usable[order] & (next_current | over[order])

        behind = np.repeat(self._else[:, None], len(names), axis=1)
        behind[:, goes_on] = self.ahead.to_go[:, at[goes_on]]
        kept = order[there]
        counts = np.bincount(np.repeat(np.arange(len(names)), lengths)[there], minlength=len(names))
        found = _discounted(rewards[:, kept], counts, behind, self.gamma)
        heads = behind
        some = counts > 0
        heads[:, some] = found[:, (np.cumsum(counts) - counts)[some]]
        open_here = sorted_steps[begins] > 0
        newer = Ahead(
            names[open_here],
            sorted_steps[begins][open_here],
            is_current[begins][open_here],
            heads[:, open_here],
        )
        self.ahead = self.ahead.updated(newer, names)
        rows = np.argsort(kept)
        return Kept(kept[rows], found[:, rows])


def _discounted(
    rewards: Float64Array, counts: np.ndarray, behind: Float64Array, gamma: float
) -> Float64Array:
    """float64[m, n] Σ_{u ≥ t} γ^{u−t} r_u of rows that lie by session, ``counts`` [s] of each, and in order;
    ``behind`` [m, s] is what a session returns after its last row here."""
    to_go = rewards
    some = counts > 0
    lengths, begins = counts[some], (np.cumsum(counts) - counts)[some]
    to_go[:, begins + lengths - 1] += gamma * behind[:, some]
    longest_first = np.argsort(-lengths, kind="stable")
    begins, lengths = begins[longest_first], lengths[longest_first]
    # from the last request but one of the longest sessions to the first: no power of γ is divided by
    for place in range(int(lengths.max(initial=1)) - 2, -1, -1):
        at = begins[: np.searchsorted(-lengths, -(place + 1))] + place
        to_go[:, at] += gamma * to_go[:, at + 1]
    return to_go


def returns_to_go(data: Transitions, gamma: float, rewards: Tensor | None = None) -> Float64Array:
    """Σ_{u ≥ t} γ^{u−t} r_u of every row, float64[N]; of other ``rewards`` [N] than the data's where given.

    A session counts with the rows that are there: of one that was cut, with what it brought until then.
    """
    every = np.ones(len(data), dtype=bool)
    found = Backwards(gamma, Ahead.nothing(1), np.zeros(1)).part(
        data.sessions.numpy().astype(np.uint64),
        data.steps.numpy(),
        (data.rewards if rewards is None else rewards).numpy().astype(np.float64)[None],
        *(every, every, every),
    )
    return found.to_go[0]
