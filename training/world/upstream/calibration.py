"""Calibration of the heads: outputs into probabilities and seconds that come true on average.

A head's output f becomes g⁻¹(a + b f) with the canonical link g of its kind: the logit (Platt
scaling), the logarithm for seconds. With these, the predictions' mean on the held-out rows is the
observed mean; and the order of the outputs is kept, which ranking needs and isotonic steps would lose.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.world.upstream.data import PLAY_TIME

Link = Callable[[np.ndarray], np.ndarray]

SLOPE_PRIOR_SD = 0.5  # of the slope around 1; only heads with few positives feel it
LEAST_SLOPE = 0.1  # a slope of 0 or less would lose or turn round the order
LEVEL_POSITIVES = 100  # with fewer held-out positives the level also asks the training rate
NEWTON_STEPS = 50
PRIOR_POSITIVES = 20.0  # the training rate counts as much as this many positives in the level


@dataclass(frozen=True)
class Calibration:
    """``intercept`` a and ``slope`` b of each head."""

    heads: tuple[str, ...]
    intercept: tuple[float, ...]
    slope: tuple[float, ...]

    @classmethod
    def identity(cls, heads: Sequence[str]) -> "Calibration":
        return cls(tuple(heads), (0.0,) * len(heads), (1.0,) * len(heads))

    @classmethod
    def learn(
        cls, heads: Sequence[str], outputs: np.ndarray, labels: np.ndarray, train_rates: np.ndarray
    ) -> "Calibration":
        """Outputs and labels float64[n, heads] of the held-out rows.

        A head with few positives there takes its level from both the held-out rows and the rate of
        the training rows.
        """
        pairs = []
        for i, head in enumerate(heads):
            f, y = outputs[:, i], labels[:, i]
            links: tuple[Link, Link] = (_sigmoid, _bernoulli)
            if head == PLAY_TIME:
                links = (np.exp, np.positive)
            inverse_link, variance = links
            a, b = _newton(f, y, inverse_link, variance)
            rate = None if head == PLAY_TIME or y.sum() >= LEVEL_POSITIVES else train_rates[i]
            if rate is not None or b < LEAST_SLOPE:
                b = max(b, LEAST_SLOPE)
                a = _level(b * f, y, inverse_link, rate)
            pairs.append((a, b))
        return cls(tuple(heads), tuple(a for a, _ in pairs), tuple(b for _, b in pairs))

    def link(self, outputs: np.ndarray) -> np.ndarray:
        """a + b f: logits, and the logarithm of seconds for play time."""
        return np.asarray(self.intercept) + np.asarray(self.slope) * outputs

    def apply(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs float64[n, heads] to probabilities and seconds."""
        linear = self.link(outputs)
        seconds = np.array([head == PLAY_TIME for head in self.heads])
        return np.where(seconds, np.exp(np.where(seconds, linear, 0.0)), _sigmoid(linear))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _bernoulli(mean: np.ndarray) -> np.ndarray:
    return mean * (1.0 - mean)


def _newton(f: np.ndarray, y: np.ndarray, inverse_link: Link, variance: Link) -> tuple[float, float]:
    """Largest posterior of y ~ inverse_link(a + b f) with b ~ N(1, SLOPE_PRIOR_SD²)."""
    design = np.stack([np.ones_like(f), f], axis=1)
    precision = np.array([0.0, SLOPE_PRIOR_SD**-2])
    place = np.array([0.0, 1.0])
    for _ in range(NEWTON_STEPS):
        mean = inverse_link(design @ place)
        gradient = design.T @ (y - mean) - precision * (place - [0.0, 1.0])
        hessian = design.T @ (design * variance(mean)[:, None]) + np.diag(precision + 1e-9)
        step = np.clip(np.linalg.solve(hessian, gradient), -1.0, 1.0)
        place = place + step
        if np.abs(step).max() < 1e-10:
            break
    return float(place[0]), float(place[1])


def _level(f: np.ndarray, y: np.ndarray, inverse_link: Link, train_rate: float | None) -> float:
    """The shift at which the mean prediction is the held-out rate, drawn to the training rate if given."""
    rate = y.mean()
    if train_rate is not None:
        prior = PRIOR_POSITIVES / max(train_rate, 1e-9)  # impressions that the prior is worth
        rate = (y.sum() + PRIOR_POSITIVES) / (len(y) + prior)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if inverse_link(f + middle).mean() < rate else (low, middle)
    return 0.5 * (low + high)
