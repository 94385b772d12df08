"""Calibration of the heads: outputs into probabilities and seconds that come true on average.

A head's output f becomes g⁻¹(a + b f) with the canonical link g of its kind: the logit (Platt
scaling), the logarithm for seconds. Both are maximum-likelihood fits, so that on the held-out rows
the predictions' mean is the observed mean; both keep the order of the outputs, which ranking needs
and isotonic steps would lose.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.upstream.data import PLAY_TIME

SLOPE_POSITIVES = 100  # fewer held-out positives fix no slope: it stays 1 and only the level moves
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
            if head == PLAY_TIME:
                pairs.append(_newton(f, y, np.exp, lambda mean: mean))
            elif y.sum() >= SLOPE_POSITIVES:
                pairs.append(_newton(f, y, _sigmoid, lambda mean: mean * (1.0 - mean)))
            else:
                pairs.append((_level(f, y, train_rates[i]), 1.0))
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


def _newton(f: np.ndarray, y: np.ndarray, inverse_link, variance) -> tuple[float, float]:
    """Maximum likelihood of y ~ inverse_link(a + b f); a slope that turns the order is refused."""
    design = np.stack([np.ones_like(f), f], axis=1)
    a, b = 0.0, 1.0
    for _ in range(NEWTON_STEPS):
        mean = inverse_link(a + b * f)
        gradient = design.T @ (y - mean)
        hessian = design.T @ (design * variance(mean)[:, None]) + 1e-9 * np.eye(2)
        step = np.clip(np.linalg.solve(hessian, gradient), -1.0, 1.0)
        a, b = a + step[0], b + step[1]
        if np.abs(step).max() < 1e-10:
            break
    return (float(a), float(b)) if b > 0 else (0.0, 1.0)


def _level(f: np.ndarray, y: np.ndarray, train_rate: float) -> float:
    """The shift at which the mean prediction is the held-out rate, drawn to the training rate."""
    prior = PRIOR_POSITIVES / max(train_rate, 1e-9)  # impressions that the prior is worth
    rate = (y.sum() + PRIOR_POSITIVES) / (len(y) + prior)
    low, high = -20.0, 20.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _sigmoid(f + middle).mean() < rate else (low, middle)
    return 0.5 * (low + high)
