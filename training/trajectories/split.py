"""Which rows a learner trains on, and which the judge tests on."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from training.contract.log import MIXED_ARMS


def last_sessions(sessions: np.ndarray, share: float) -> np.ndarray:
    """bool[N]: rows of the fewest last sessions that hold at least ``share`` of the rows."""
    rows_from_end = np.cumsum(np.bincount(sessions)[::-1])
    count = int(np.searchsorted(rows_from_end, share * len(sessions))) + 1
    return sessions > sessions.max() - count


def mixed_exploration(
    sessions: np.ndarray, arms: np.ndarray, arm_names: Sequence[str], name: Callable[[int], str], seed: int
) -> tuple[np.ndarray, list[str]]:
    """bool[N]: rows of as many random as noise trajectories (method §3), and what a person should know of it.

    ``sessions`` int64[N] and ``arms`` int64[N] are of the rows, ``name`` gives a session's. The larger group
    is thinned by a hash of the session, so that a rerun takes the same ones. With one group empty the other
    is used alone; with both empty, every arm.
    """
    numbers, first = np.unique(sessions, return_index=True)
    arm_of = np.array(arm_names)[arms[first]]
    groups = {arm: numbers[arm_of == arm] for arm in MIXED_ARMS}
    present = {arm: group for arm, group in groups.items() if len(group)}
    if not present:
        found = dict(sorted(Counter(arm_of.tolist()).items()))
        return np.ones(len(sessions), dtype=bool), [
            f"no session of the random or the noise group: all arms are trained on ({found})"
        ]
    warnings = []
    if len(present) == 1:
        (only,) = present
        (empty,) = set(MIXED_ARMS) - {only}
        warnings = [f"no session of the {empty} group: trained on the {only} group alone"]
    count = min(len(group) for group in present.values())

    def rank(number: int) -> bytes:
        return hashlib.sha256(f"{seed}/{name(number)}".encode()).digest()

    chosen = [number for group in present.values() for number in sorted(group, key=rank)[:count]]
    return np.isin(sessions, chosen), warnings
