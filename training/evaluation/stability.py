"""What can be said of a policy's actions without valuing them: bounds, spread, jumps, out-of-data."""

import numpy as np
import torch

from training.contract.errors import DataError
from training.contract.fusion import AT_BOUND

QUANTILES = (5, 25, 50, 75, 95)
_REFERENCE = 10_000  # logged actions that a distance is measured against, at most


def bound_share(actions: np.ndarray) -> float:
    """Share of the entries of actions [n, k] that lie on a bound of their interval."""
    return float((np.abs(actions) > AT_BOUND).mean())


def action_quantiles(actions: np.ndarray, heads: list[str]) -> dict[str, list[float]]:
    """The :data:`QUANTILES` of each head's action in [-1, 1]."""
    quantiles = np.percentile(actions, QUANTILES, axis=0)
    return {head: [float(q) for q in quantiles[:, i]] for i, head in enumerate(heads)}


def jump(actions: np.ndarray, others: np.ndarray) -> float:
    """Mean |a − a'| over states and heads, of two policies on the same states."""
    return float(np.abs(actions - others).mean())


def seed_spread(actions: np.ndarray) -> dict[str, float]:
    """Deviation over seeds of the action in one state: actions [seeds, n, k] of the same states.

    ``mean`` is over states and heads, ``worst`` is the largest mean of a head. Raises
    :class:`DataError` for fewer than two seeds.
    """
    if len(actions) < 2:
        raise DataError("the spread over seeds needs the actions of at least two seeds")
    deviation = actions.std(axis=0, ddof=1)
    return {"mean": float(deviation.mean()), "worst": float(deviation.mean(axis=0).max())}


class LoggedActions:
    """Distances to the logged actions, as root mean square over the heads.

    An action that was held over a session, or served to everybody, is one. ``threshold`` is the 99th
    percentile of the distances from a logged action to its nearest other:
    a policy whose mean distance is beyond it acts where hardly anything was ever logged. The actions
    are compared whatever the state, so the alarm errs towards silence.
    """

    def __init__(self, actions: np.ndarray, seed: int) -> None:
        rng, actions = np.random.default_rng(seed), np.unique(actions, axis=0)
        if len(actions) > _REFERENCE:
            actions = actions[rng.choice(len(actions), _REFERENCE, replace=False)]
        self.reference = torch.from_numpy(np.ascontiguousarray(actions))
        among = self._nearest(self.reference, others=True)
        self.threshold = float(np.percentile(among, 99)) if len(among) else 0.0

    def distances(self, actions: np.ndarray) -> np.ndarray:
        """Of each action [n, k] to the nearest logged one, float[n]."""
        return self._nearest(torch.from_numpy(np.ascontiguousarray(actions)), others=False)

    def _nearest(self, actions: torch.Tensor, others: bool) -> np.ndarray:
        """``others``: the actions are the reference itself, and none is its own neighbour."""
        if others and len(actions) < 2:
            return np.zeros(0)
        found = []
        for start in range(0, len(actions), 1_000):
            distance = torch.cdist(actions[start : start + 1_000], self.reference)
            if others:
                own = torch.arange(len(distance))
                distance[own, own + start] = float("inf")
            found.append(distance.amin(dim=1))
        return (torch.cat(found) / actions.shape[1] ** 0.5).numpy()
