"""What the model sees of a state and an action, and of what the two have to do with each other.

The order of a list ignores the scale of α, and a weight's effect is one of ratios: half a weight matters
more than a tenth less of it. So an action is read as log-shares of its weights' intervals,

    x_i = log((|α_i| / m_i + ε) / (1 + ε)),   m_i the largest |α_i| of the interval,

with their squares and products, and as cosines of the weights' *direction* |α| / ‖α‖ (random Fourier
features, Rahimi and Recht 2007: a Gaussian process with a smooth kernel), for what a quadratic misses. A head
whose interval has zero inside keeps α_i / m_i itself, for its sign counts.

Who wants what is u ⊗ (…): traits u of the state times features of the action. No log of a usual size tells
each product of d entries with the 194 features that eight weights have. So there are two forms. The first
takes every entry, u = s, with the log-shares alone; what it finds says which few directions of the state
matter (:func:`training.returns.model.traits`). The second takes these, u = s P, with *all* features of the
action: each trait has a surface of its own over the weights, with summits of its own (reduced-rank
regression, Izenman 1975).
"""

from functools import cached_property

import numpy as np

from training.contract.arrays import Float64Array
from training.contract.fusion import Fusion

_EPSILON = 0.1  # of the log-shares: a weight below a tenth of its interval hardly orders anything
_COSINES = 150
_SCALE = 1.5  # of the frequencies: directions a radian or so apart are told from each other
_PART = 4_096  # rows whose features are in memory at once
_FLOOR = 0.02  # under each share, so that all weights at zero have a direction, too


class Features:
    """Features of the actions of one fusion formula, and of states of width ``d``.

    A row is [1 | s | x | x² | x_i x_j | cosines | products]; the products are s ⊗ x, or u ⊗ (all of the
    action) with ``projection`` float64[d, r], u = s P. :attr:`groups` names the parts that share a variance.
    """

    def __init__(self, fusion: Fusion, d: int, projection: Float64Array | None = None) -> None:
        self.fusion, self.d, self.k = fusion, d, len(fusion.heads)
        self._most = np.maximum(np.abs(fusion.low), np.abs(fusion.high))
        self._signed = (fusion.low < 0.0) & (fusion.high > 0.0)
        self._pairs = np.triu_indices(self.k, 1)
        rng = np.random.default_rng(0)  # a fixed basis, so that statistics of different days add up
        self._frequencies = rng.normal(size=(self.k, _COSINES)) * _SCALE
        self._phases = rng.uniform(0.0, 2.0 * np.pi, _COSINES)
        sizes = {"linear": self.k, "square": self.k, "product": len(self._pairs[0]), "cosine": _COSINES}
        self._of_action = _consecutive(1 + d, sizes)
        self.state = slice(1, 1 + d)
        self.action = slice(1 + d, 1 + d + sum(sizes.values()))
        self.projection = projection
        self.traits = d if projection is None else projection.shape[1]  # width of u
        # features of the action in u ⊗ (…)
        self.modulated = self.k if projection is None else sum(sizes.values())
        self.products = slice(self.action.stop, self.action.stop + self.traits * self.modulated)
        self.width = self.products.stop

    @cached_property
    def groups(self) -> dict[str, slice]:
        """Parts of a row whose features share a variance; all but the first entry, the 1, are in one."""
        found = {"state": self.state, **self._of_action}
        for u in range(self.traits):
            start = self.products.start + u * self.modulated
            if self.projection is None:
                found[f"entry {u}"] = slice(start, start + self.k)
            else:
                shift = start - self.action.start
                found |= {
                    f"trait {u} {name}": slice(part.start + shift, part.stop + shift)
                    for name, part in self._of_action.items()
                }
        return found

    @cached_property
    def surfaces(self) -> list[list[str]]:
        """Names of the groups by what they are a function of the weights for: all states, then each trait."""
        common = list(self._of_action)
        if self.projection is None:
            return [common]
        return [common, *([f"trait {u} {name}" for name in common] for u in range(self.traits))]

    def of_states(self, states: np.ndarray) -> Float64Array:
        """u float64[n, traits] of states [n, d]."""
        s = np.asarray(states, dtype=np.float64)
        return s if self.projection is None else s @ self.projection

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
        of_action, n = self.of_actions(actions), len(states)
        found = np.empty((n, self.width))
        found[:, 0], found[:, self.state], found[:, self.action] = 1.0, states, of_action
        np.multiply(
            self.of_states(states)[:, :, None],
            of_action[:, None, : self.modulated],
            out=found[:, self.products].reshape(n, self.traits, self.modulated),  # a view
        )
        return found

    def mean_row(
        self, states: np.ndarray, actions: np.ndarray, weights: np.ndarray | None = None
    ) -> Float64Array:
        """float64[width], the mean of :meth:`rows`; with ``weights`` [n], else equal ones."""
        share = np.ones(len(states)) if weights is None else np.asarray(weights, dtype=np.float64)
        total = np.zeros(self.width)
        for part in np.array_split(np.arange(len(states)), max(1, -(-len(states) // _PART))):
            s, of_action = np.asarray(states[part], dtype=np.float64), self.of_actions(actions[part])
            products = (self.of_states(s) * share[part, None]).T @ of_action[:, : self.modulated]
            own = share[part]
            total += np.concatenate([[own.sum()], own @ s, own @ of_action, products.ravel()])
        return total / total[0]


def _consecutive(start: int, sizes: dict[str, int]) -> dict[str, slice]:
    ends = start + np.cumsum(list(sizes.values()))
    return {
        name: slice(int(end) - size, int(end)) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }
