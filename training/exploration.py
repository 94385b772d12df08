"""Exploration of many actions at once: what ``serving.ranking.exploration`` does one by one."""

import numpy as np
from scipy.special import ndtr, ndtri


def sample(mean: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Actions float64[..., k] of N(mean, std²), each entry truncated to [-1, 1]; ``mean`` in [-1, 1]."""
    low, high = ndtr((-1.0 - mean) / std), ndtr((1.0 - mean) / std)
    level = low + rng.random(mean.shape) * (high - low)
    return np.clip(mean + std * ndtri(level), -1.0, 1.0)


def log_density(actions: np.ndarray, mean: np.ndarray, std: float) -> np.ndarray:
    """log p(action) float64[...], summed over the k entries; -inf outside [-1, 1]."""
    z = (actions - mean) / std
    kept = ndtr((1.0 - mean) / std) - ndtr((-1.0 - mean) / std)
    entries = -0.5 * z**2 - 0.5 * np.log(2.0 * np.pi) - np.log(std) - np.log(kept)
    return np.where(np.abs(actions) <= 1.0, entries, -np.inf).sum(axis=-1)


def sample_box(mean: np.ndarray, width: float, rng: np.random.Generator) -> np.ndarray:
    """Actions float64[..., k], uniform on mean ± width within [-1, 1]; ``mean`` in [-1, 1]."""
    return rng.uniform(np.maximum(mean - width, -1.0), np.minimum(mean + width, 1.0))


def log_density_box(actions: np.ndarray, mean: np.ndarray, width: float) -> np.ndarray:
    """log p(action) float64[...] of it, summed over the k entries; -inf outside."""
    low, high = np.maximum(mean - width, -1.0), np.minimum(mean + width, 1.0)
    return np.where((low <= actions) & (actions <= high), -np.log(high - low), -np.inf).sum(axis=-1)
