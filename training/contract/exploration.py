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

An action is drawn by inversion: k uniforms u, pushed through the inverse of the distribution's cumulative
function. Where u is drawn once for a session (:func:`session_uniforms`) and pushed through anew at each
request, every request's action has exactly the density that it would have had on its own, and the session
deviates one way throughout; around a mean that does not move, as the random group's, the action is held.
"""

import hashlib
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_STANDARD = NormalDist()
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_INTEGERS, _A_DIGEST = np.dtype("<u4"), 16  # of them in each of blake2b's digests
_ROUNDING = 1e-7  # of a float32 below 1


def replay_generator(seed: int, request_id: str) -> np.random.Generator:
    """The generator of one request of replayed traffic: the same request draws the same action."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])


def session_uniforms(
    seed: int, salt: str, epoch: int, user_id: int | str, session_id: str, count: int
) -> np.ndarray:
    """Uniforms float64[count] in [0, 1) of a session: the same in any process at any time, stored nowhere.

    ``seed`` and ``salt`` are the settings'; who does not know them cannot tell a session's deviation.
    """
    key = f"{seed}:{epoch}:{user_id}:{salt}:{session_id}".encode()
    digest = hashlib.blake2b(key).digest()
    for block in range(1, -(-count // _A_DIGEST)):
        digest += hashlib.blake2b(key, salt=block.to_bytes(8, "big")).digest()
    uniforms: np.ndarray = np.frombuffer(digest, _INTEGERS, count) * 2.0**-32
    return uniforms


# --- one action at once


@dataclass(frozen=True)
class TruncatedNormal:
    """``mean`` float[k] in [-1, 1] is μ, the mean before truncation; ``std`` is σ > 0."""

    mean: np.ndarray
    std: float

    def at(self, uniforms: np.ndarray) -> np.ndarray:
        """The action float32[k] of uniforms in [0, 1): μ + σ·Φ⁻¹(Φ(a) + u (Φ(b) − Φ(a)))."""
        action, scale = np.empty(len(self.mean), dtype=np.float64), self.std * math.sqrt(2.0)
        for index, (mu, u) in enumerate(zip(self.mean.tolist(), uniforms.tolist(), strict=True)):
            low = 0.5 * math.erfc((1.0 + mu) / scale)  # Φ, in place: the loop is of every request
            high = 0.5 * math.erfc((mu - 1.0) / scale)
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

    def at(self, uniforms: np.ndarray) -> np.ndarray:
        """The action float32[k] of uniforms in [0, 1): low + u (high − low)."""
        low, high = self._bounds()
        action: np.ndarray = np.clip((low + uniforms * (high - low)).astype(np.float32), -1.0, 1.0)
        return action

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
    return sample_at(mean, std, rng.random(mean.shape))


def sample_at(mean: np.ndarray, std: float, uniforms: np.ndarray) -> np.ndarray:
    """The actions float64[..., k] of uniforms [..., k] in [0, 1)."""
    from scipy.special import ndtr, ndtri

    low, high = ndtr((-1.0 - mean) / std), ndtr((1.0 - mean) / std)
    actions: np.ndarray = np.clip(mean + std * ndtri(low + uniforms * (high - low)), -1.0, 1.0)
    return actions


def log_density(actions: np.ndarray, mean: np.ndarray, std: float) -> np.ndarray:
    """log p(action) float64[...], summed over the k entries; -inf outside [-1, 1]."""
    from scipy.special import ndtr

    z = (actions - mean) / std
    kept = ndtr((1.0 - mean) / std) - ndtr((-1.0 - mean) / std)
    entries = -0.5 * z**2 - 0.5 * np.log(2.0 * np.pi) - np.log(std) - np.log(kept)
    density: np.ndarray = np.where(np.abs(actions) <= 1.0, entries, -np.inf).sum(axis=-1)
    return density


def sample_box_at(mean: np.ndarray, width: float, uniforms: np.ndarray) -> np.ndarray:
    """The actions float64[..., k] of uniforms [..., k] in [0, 1)."""
    low, high = np.maximum(mean - width, -1.0), np.minimum(mean + width, 1.0)
    actions: np.ndarray = low + uniforms * (high - low)
    return actions


def log_density_box(actions: np.ndarray, mean: np.ndarray, width: float) -> np.ndarray:
    """log p(action) float64[...] of it, summed over the k entries; -inf outside."""
    low, high = np.maximum(mean - width, -1.0), np.minimum(mean + width, 1.0)
    inside = (low <= actions) & (actions <= high)
    density: np.ndarray = np.where(inside, -np.log(high - low), -np.inf).sum(axis=-1)
    return density
