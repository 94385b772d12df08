"""Exploration on the action box [-1, 1]: exact draws and exact log-densities.

Gaussian: every entry of an action is an independent normal N(μ_i, σ²) truncated to [-1, 1] (KDD 2022,
§3, with the truncation written down: clipping would put probability mass on the bounds, where no
density is).
Because μ_i lies inside the box, the kept mass is never small and no tail series is needed.

Box: every entry is uniform on [μ_i - w, μ_i + w] cut to [-1, 1] (UnifiedRL, arXiv 2404.17589: w 0.15).

Each is here twice, and a test holds one form to the other. :class:`TruncatedNormal` and :class:`UniformBox`
draw one action, for a request: with ``math`` and ``statistics``, because scipy's calls on arrays of k entries
cost several times as much, and its import a worker's start. The functions draw many at once, for training and
judging, where the opposite holds. The two differ in the last bits of Φ and its inverse, and both have been
drawn by: an action that a seed gave is only found again by the form that gave it.
"""

import hashlib
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_STANDARD = NormalDist()
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_ROUNDING = 1e-7  # of a float32 below 1


def replay_generator(seed: int, request_id: str) -> np.random.Generator:
    """The generator of one request of replayed traffic: the same request draws the same action."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])


# --- one action at once


@dataclass(frozen=True)
class TruncatedNormal:
    """``mean`` float[k] in [-1, 1] is μ, the mean before truncation; ``std`` is σ > 0."""

    mean: np.ndarray
    std: float

    def sample(self, generator: np.random.Generator) -> np.ndarray:
        """One action float32[k], by inversion: μ + σ·Φ⁻¹(u) with u uniform on (Φ(a), Φ(b))."""
        uniforms = generator.random(len(self.mean))
        action = np.empty(len(self.mean), dtype=np.float64)
        for index, (mu, u) in enumerate(zip(self.mean.tolist(), uniforms.tolist(), strict=True)):
            low = _STANDARD.cdf((-1.0 - mu) / self.std)
            high = _STANDARD.cdf((1.0 - mu) / self.std)
            # u = 0 with the box's end many σ away asks for Φ⁻¹(0): the end itself is meant
            level = low + u * (high - low)
            action[index] = mu + self.std * _STANDARD.inv_cdf(level) if 0.0 < level < 1.0 else -1.0
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def log_density(self, action: np.ndarray) -> float:
        """log p(action) = Σ_i log φ((a_i - μ_i) / σ) - log σ - log(Φ(b_i) - Φ(a_i)); -inf outside."""
        total = 0.0
        for mu, a in zip(self.mean.tolist(), np.asarray(action, dtype=np.float64).tolist(), strict=True):
            if not -1.0 <= a <= 1.0:
                return -math.inf
            z = (a - mu) / self.std
            # Φ(b) - Φ(a) as two erf of the same sign: both ends are on their own side of μ
            scale = self.std * math.sqrt(2.0)
            kept = 0.5 * (math.erf((1.0 - mu) / scale) + math.erf((1.0 + mu) / scale))
            total -= 0.5 * z * z + _LOG_SQRT_2PI + math.log(self.std) + math.log(kept)
        return total


@dataclass(frozen=True)
class UniformBox:
    """``mean`` float[k] in [-1, 1] is μ, the centre before the cut; ``width`` > 0 is w, to either side."""

    mean: np.ndarray
    width: float

    def sample(self, generator: np.random.Generator) -> np.ndarray:
        """One action float32[k]."""
        low, high = self._bounds()
        return np.clip(generator.uniform(low, high).astype(np.float32), -1.0, 1.0)

    def log_density(self, action: np.ndarray) -> float:
        """log p(action) = -Σ_i log(high_i - low_i); -inf outside (up to the rounding of float32)."""
        low, high = self._bounds()
        action = np.asarray(action, dtype=np.float64)
        if ((action < low - _ROUNDING) | (action > high + _ROUNDING)).any():
            return -math.inf
        return -float(np.log(high - low).sum())

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        mean = np.asarray(self.mean, dtype=np.float64)
        return np.maximum(mean - self.width, -1.0), np.minimum(mean + self.width, 1.0)


# --- many actions at once


def sample(mean: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Actions float64[..., k] of N(mean, std²), each entry truncated to [-1, 1]; ``mean`` in [-1, 1]."""
    from scipy.special import ndtr, ndtri

    low, high = ndtr((-1.0 - mean) / std), ndtr((1.0 - mean) / std)
    level = low + rng.random(mean.shape) * (high - low)
    actions: np.ndarray = np.clip(mean + std * ndtri(level), -1.0, 1.0)
    return actions


def log_density(actions: np.ndarray, mean: np.ndarray, std: float) -> np.ndarray:
    """log p(action) float64[...], summed over the k entries; -inf outside [-1, 1]."""
    from scipy.special import ndtr

    z = (actions - mean) / std
    kept = ndtr((1.0 - mean) / std) - ndtr((-1.0 - mean) / std)
    entries = -0.5 * z**2 - 0.5 * np.log(2.0 * np.pi) - np.log(std) - np.log(kept)
    density: np.ndarray = np.where(np.abs(actions) <= 1.0, entries, -np.inf).sum(axis=-1)
    return density


def sample_box(mean: np.ndarray, width: float, rng: np.random.Generator) -> np.ndarray:
    """Actions float64[..., k], uniform on mean ± width within [-1, 1]; ``mean`` in [-1, 1]."""
    return rng.uniform(np.maximum(mean - width, -1.0), np.minimum(mean + width, 1.0))


def log_density_box(actions: np.ndarray, mean: np.ndarray, width: float) -> np.ndarray:
    """log p(action) float64[...] of it, summed over the k entries; -inf outside."""
    low, high = np.maximum(mean - width, -1.0), np.minimum(mean + width, 1.0)
    inside = (low <= actions) & (actions <= high)
    density: np.ndarray = np.where(inside, -np.log(high - low), -np.inf).sum(axis=-1)
    return density
