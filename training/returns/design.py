"""The standardised features of a log's rows: what the models of all rewards on it share."""

import numpy as np

from training.contract.arrays import Float64Array
from training.returns.features import Features
from training.returns.statistics import Statistics


class Design:
    """The features of a log's rows, standardised, without the returns: what all rewards' models share.

    ``centre`` and ``scale`` (float64[p]; 0 where a feature never varies) standardise a row of
    :meth:`Features.rows`, whose map to the standardised features is ``change`` float64[p, width]; ``a`` is
    Σ z zᵀ [p, p] of these.
    """

    def __init__(self, features: Features, statistics: Statistics) -> None:
        self.features, self.rows, self.by_cluster = features, float(statistics.rows.sum()), statistics.rows
        self._zz_of = statistics.zz
        total = statistics.zz.sum(axis=0)
        mean = total[0] / self.rows
        # (u − ū) ⊗ (φ − μ) = u ⊗ φ − ū ⊗ φ − u ⊗ μ + ū ⊗ μ, u = s P: a linear map of the row
        change = np.eye(features.width)
        u, mu = features.of_states(mean[None, features.state])[0], mean[features.action][: features.modulated]
        projection = np.eye(features.d) if features.projection is None else features.projection
        of_action = slice(features.action.start, features.action.start + features.modulated)
        for trait in range(features.traits):
            start = features.products.start + trait * features.modulated
            rows_of = np.arange(start, start + features.modulated)
            change[rows_of, np.arange(of_action.start, of_action.stop)] -= u[trait]
            change[rows_of, features.state] -= np.outer(mu, projection[:, trait])
            change[rows_of, 0] += u[trait] * mu
        total = change @ total @ change.T
        mean = total[0] / self.rows
        spread = np.sqrt(np.maximum(np.diag(total) / self.rows - mean**2, 0.0))[1:]
        self.centre = mean[1:]
        # an entry that is the same in all rows says nothing
        self.scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-4)
        change = change[1:].copy()
        change[:, 0] -= self.centre
        self.change = change * self.scale[:, None]
        about_the_mean = total[1:, 1:] - self.rows * np.outer(self.centre, self.centre)
        self.a = about_the_mean * np.outer(self.scale, self.scale)

    def members(self) -> dict[str, np.ndarray]:
        """Places of each group's features among the standardised ones, without those that never vary."""
        groups = self.features.groups.items()
        places = {name: np.arange(part.start, part.stop) - 1 for name, part in groups}
        varying = {name: own[self.scale[own] > 0.0] for name, own in places.items()}
        return {name: own for name, own in varying.items() if len(own)}

    def fitted(self, theta: Float64Array) -> Float64Array:
        """Σ z zᵀθ of each cluster, float64[clusters, p]."""
        fitted: Float64Array = (self._zz_of @ (self.change.T @ theta)) @ self.change.T
        return fitted
