"""Transitions as tensors, and the two splits of a window."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """N transitions, oldest first; a row of every tensor is one request.

    ``next_actions`` is what was served at s' (where the session ended: zeros, masked by ``dones``;
    where that request is not in the window: the row's own action). ``log_densities`` is NaN for an
    action that was not drawn. ``sessions`` numbers the trajectories; ``arms`` indexes ``arm_names``.
    ``users`` are the users' own ids, the same in both splits and on every day: arms are assigned to users, so
    these are the clusters of what the closed forms resample or sum.
    """

    states: Tensor  # float32[N, d], as served
    actions: Tensor  # float32[N, k], in [-1, 1]
    rewards: Tensor  # float32[N], eq. (2)
    next_states: Tensor  # float32[N, d], zeros where done
    next_actions: Tensor  # float32[N, k]
    dones: Tensor  # float32[N], 1 where the session ended: masks the bootstrap
    action_means: Tensor  # float32[N, k], of the behaviour policy
    log_densities: Tensor  # float64[N], of the behaviour policy
    sessions: Tensor  # int64[N]
    users: Tensor  # int64[N]
    steps: Tensor  # int64[N], 0 is the first request of the session
    by_session: Tensor  # bool[N], drawn once for the session; false: for each request, or not at all
    arms: Tensor  # int64[N]
    arm_names: tuple[str, ...]
    # which policy served: indexes version_names; None where it is not known, as in simulated logs
    versions: Tensor | None = None  # int64[N]
    version_names: tuple[str, ...] = ()
    # of the behaviour policy at s', as next_actions (always there but in tests that do without)
    next_action_means: Tensor | None = None  # float32[N, k]
    # what only some learners read, None where it was not asked for: the part of the reward that is play
    # time and integrity, and the shown items (where fewer than page were shown: score 0, reward NaN)
    watch_rewards: Tensor | None = None  # float32[N]
    item_scores: Tensor | None = None  # float32[N, page, k], the predictions of each head
    item_rewards: Tensor | None = None  # float32[N, page], terms of eq. (2)
    reward_factors: Tensor | None = None  # float32[N, 2 + signals], v_i of eq. (2), summed over the page

    def __len__(self) -> int:
        return len(self.rewards)

    def take(self, rows: Tensor) -> "Transitions":
        """The given rows, in the given order."""
        return self._each(lambda column: column[rows])

    def to(self, device: torch.device) -> "Transitions":
        """The same transitions on a device; themselves where they are there."""
        if self.rewards.device == device:
            return self
        return self._each(lambda column: column.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Transitions":
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, column in columns.items():
            if isinstance(column, Tensor):
                columns[name] = change(column)
        return Transitions(**columns)

    def arm_counts(self) -> dict[str, dict[str, int]]:
        """Transitions and sessions by arm; a session counts for the arm of its first row here."""
        arms, sessions = self.arms.numpy(), self.sessions.numpy()
        _, first = np.unique(sessions, return_index=True)
        return {
            name: {"transitions": int((arms == i).sum()), "sessions": int((arms[first] == i).sum())}
            for i, name in enumerate(self.arm_names)
            if (arms == i).any()
        }


_DTYPES = {
    "log_densities": torch.float64,
    "by_session": torch.bool,
    **dict.fromkeys(("sessions", "users", "steps", "arms"), torch.int64),
}


def sequence(rows: Mapping[str, np.ndarray], ended: np.ndarray, arm_names: tuple[str, ...]) -> Transitions:
    """Transitions of requests in any order: each is followed by the next step of its session.

    ``rows`` holds the fields of :class:`Transitions` of every request, but those that say what followed and
    ``dones``, which is ``ended``, bool[N]. The last request of a session that has not ended is left out.
    """
    order = np.lexsort((rows["steps"], rows["sessions"]))
    given = {name: column[order] for name, column in {**rows, "dones": ended}.items()}
    follows = np.append(given["sessions"][1:] == given["sessions"][:-1], False)
    successor = np.where(follows, np.arange(len(follows)) + 1, 0)
    for name, of in (
        ("next_states", "states"),
        ("next_actions", "actions"),
        ("next_action_means", "action_means"),
    ):
        given[name] = np.where(follows[:, None], given[of][successor], 0.0)
    keep = follows | given["dones"]
    columns: dict[str, Any] = {
        name: torch.from_numpy(np.ascontiguousarray(column[keep])).to(_DTYPES.get(name, torch.float32))
        for name, column in given.items()
    }
    return Transitions(**columns, arm_names=arm_names)


@dataclass(frozen=True)
class Trajectories:
    """The splits, what they were made from, and how many rows were left out and why.

    ``partitions`` is ``{day: {"rows", "sha256"}}`` (of the content, not of the file's bytes);
    ``left_out`` counts rows by reason; ``warnings`` are sentences for the person who reads the report.
    """

    train: Transitions
    test: Transitions
    every: Transitions | None  # all usable rows of all arms, where they were asked for
    state_spec: str
    partitions: dict[str, dict[str, int | str]]
    left_out: dict[str, int]
    warnings: tuple[str, ...]

    def sha256(self) -> str:
        """Of what a learner sees: the splits' tensors."""
        digest = hashlib.sha256()
        for split in filter(None, (self.train, self.test, self.every)):
            for f in fields(split):
                column = getattr(split, f.name)
                # an array is a buffer to type checkers from Python 3.12 on
                content: Any = column.numpy() if isinstance(column, Tensor) else repr(column).encode()
                digest.update(content)
        return digest.hexdigest()
