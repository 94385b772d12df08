"""What the model sees of a state and an action.

The order of a list ignores the scale of α, and a weight's effect is one of ratios: half a weight matters
more than a tenth less of it. So an action is read as log-shares of its weights' intervals,

    x_i = log((|α_i| / m_i + ε) / (1 + ε)),   m_i the largest |α_i| of the interval,

with their squares and products, and as cosines of the weights' *direction* |α| / ‖α‖ (random Fourier
features, Rahimi and Recht 2007: a Gaussian process with a smooth kernel), for what a quadratic misses. A head
whose interval has zero inside keeps α_i / m_i itself, for its sign counts.
"""

from functools import cached_property

import numpy as np

from training.contract.arrays import Float64Array
from training.contract.fusion import Fusion

_EPSILON = 0.1  # of the log-shares: a weight below a tenth of its interval hardly orders anything
_COSINES = 150
_SCALE = 1.5  # of the frequencies: directions a radian or so apart are told from each other
_FLOOR = 0.02  # under each share, so that all weights at zero have a direction, too


class Features:
    """Features of the actions of one fusion formula, and of states of width ``d``.

    A row is [1 | s | x | x² | x_i x_j | cosines | s ⊗ x]: ``groups`` names the parts, without the first.
    """

    def __init__(self, fusion: Fusion, d: int) -> None:
        self.fusion, self.d, self.k = fusion, d, len(fusion.heads)
        self._most = np.maximum(np.abs(fusion.low), np.abs(fusion.high))
        self._signed = (fusion.low < 0.0) & (fusion.high > 0.0)
        self._pairs = np.triu_indices(self.k, 1)
        rng = np.random.default_rng(0)  # a fixed basis, so that statistics of different days add up
        self._frequencies = rng.normal(size=(self.k, _COSINES)) * _SCALE
        self._phases = rng.uniform(0.0, 2.0 * np.pi, _COSINES)

    @cached_property
    def groups(self) -> dict[str, slice]:
        sizes = {
            "state": self.d,
            "linear": self.k,
            "square": self.k,
            "product": len(self._pairs[0]),
            "cosine": _COSINES,
            "interaction": self.d * self.k,
        }
        ends = 1 + np.cumsum(list(sizes.values()))
        return {
            name: slice(int(end) - size, int(end))
            for (name, size), end in zip(sizes.items(), ends, strict=True)
        }

    @property
    def width(self) -> int:
        return self.groups["interaction"].stop

    @property
    def action(self) -> slice:
        """Features of the action alone."""
        return slice(self.groups["linear"].start, self.groups["cosine"].stop)

    def of_actions(self, actions: np.ndarray) -> Float64Array:
        """Actions [n, k] in [-1, 1] to float64[n, ·], the part :attr:`action` of a row."""
        shares = self.fusion.to_weights(actions) / self._most
        x = np.where(self._signed, shares, np.log((np.abs(shares) + _EPSILON) / (1.0 + _EPSILON)))
        i, j = self._pairs
        direction = np.where(self._signed, shares, np.abs(shares) + _FLOOR)
        direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), _FLOOR)
        cosines = np.cos(direction @ self._frequencies + self._phases)
        return np.hstack([x, x * x, x[:, i] * x[:, j], cosines])

    def rows(self, states: np.ndarray, actions: np.ndarray) -> Float64Array:
        """float64[n, width] of states [n, d] and actions [n, k]."""
        s = np.asarray(states, dtype=np.float64)
        of_action = self.of_actions(actions)
        products = s[:, :, None] * of_action[:, None, : self.k]
        return np.hstack([np.ones((len(s), 1)), s, of_action, products.reshape(len(s), self.d * self.k)])
