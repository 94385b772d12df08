"""Least-squares temporal differences for Q (Lagoudakis and Parr 2003), with a bootstrap over users.

    θ = A⁻¹ b,   A = Σ φ(s, a) (φ(s, a) − γ (1 − done) φ(s', π(s')))ᵀ + Λ,   b = Σ φ(s, a) r,
    V̂(π) = mean over initial states s0 of θᵀ φ(s0, π(s0))

φ is linear in the state and quadratic in the log-shares of the action, whose part Λ shrinks. It uses every
request and reads what is left of a session off its state, so its variance is small; what the state does not
show of a user it does not see. Users are resampled by hash clusters.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from training.contract.arrays import Float64Array
from training.contract.fusion import Fusion
from training.contract.settings import EvaluationSettings
from training.evaluation.acting import Actions
from training.evaluation.intervals import Estimates
from training.returns import Features
from training.returns.statistics import cluster_of
from training.trajectories import Transitions

_CLUSTERS, _BOOTSTRAPS = 64, 200
_STATE_PENALTY = 1e-3


def estimate(
    data: Transitions,
    policies: Mapping[str, Actions],
    fusion: Fusion,
    settings: EvaluationSettings,
    seed: int,
) -> Estimates:
    """V̂ of each policy, which acts on every row of ``data``; ``data`` must hold initial states."""
    basis = _Basis(fusion, data)
    clusters = cluster_of(data.users.numpy(), _CLUSTERS)
    order = np.argsort(clusters, kind="stable")
    bounds = np.searchsorted(clusters[order], np.arange(_CLUSTERS + 1))
    parts = [order[low:high] for low, high in pairwise(bounds)]
    rewards = data.rewards.numpy().astype(np.float64)
    going_on = 1.0 - data.dones.numpy().astype(np.float64)
    initial = data.steps.numpy() == 0

    served = basis.rows(data.states.numpy(), data.actions.numpy())
    gram = np.stack([served[part].T @ served[part] for part in parts])
    b = np.stack([served[part].T @ rewards[part] for part in parts])
    weights = np.vstack(
        [
            np.ones(_CLUSTERS),
            np.random.default_rng(seed).multinomial(
                _CLUSTERS, np.full(_CLUSTERS, 1 / _CLUSTERS), _BOOTSTRAPS
            ),
        ]
    )
    penalty = np.diag(basis.penalties(settings.lstd_q_penalty))
    values, replicates = {}, {}
    for name, actions in policies.items():
        following = basis.rows(data.next_states.numpy(), actions.next.numpy()) * going_on[:, None]
        a = gram - settings.gamma * np.stack([served[part].T @ following[part] for part in parts])
        start = np.zeros((_CLUSTERS, served.shape[1]))
        np.add.at(
            start, clusters[initial], basis.rows(data.states[initial].numpy(), actions.here.numpy()[initial])
        )
        theta = np.linalg.solve(np.tensordot(weights, a, 1) + penalty, (weights @ b)[..., None])[..., 0]
        at_start = weights @ start
        found = np.einsum("ij,ij->i", theta, at_start / at_start[:, :1])  # the first feature is 1
        values[name], replicates[name] = float(found[0]), found[1:]
    return Estimates(values, replicates, settings.confidence)


class _Basis:
    """φ: [1 | s | x | x² | x_i x_j], standardised by the served rows."""

    def __init__(self, fusion: Fusion, data: Transitions) -> None:
        self.features = Features(fusion, data.states.shape[1])
        groups = self.features.groups
        self.part = slice(0, groups["product"].stop - groups["linear"].start)
        plain = self._plain(data.states.numpy(), data.actions.numpy())
        self.mean, spread = plain.mean(axis=0), plain.std(axis=0)
        self.scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-4)

    def _plain(self, states: np.ndarray, actions: np.ndarray) -> Float64Array:
        return np.hstack([states.astype(np.float64), self.features.of_actions(actions)[:, self.part]])

    def rows(self, states: np.ndarray, actions: np.ndarray) -> Float64Array:
        """float64[n, p]"""
        standard = (self._plain(states, actions) - self.mean) * self.scale
        return np.hstack([np.ones((len(states), 1)), standard])

    def penalties(self, of_actions: float) -> Float64Array:
        """The diagonal of Λ."""
        penalties = np.full(1 + len(self.mean), of_actions)
        penalties[: 1 + self.features.d] = _STATE_PENALTY
        penalties[1:][self.scale == 0.0] = 1.0  # a feature that never varies
        return penalties
