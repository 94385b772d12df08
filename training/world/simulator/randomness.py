"""Random numbers by key, not by order: a session's luck is its own.

Every draw is a hash of (seed, day, user, session, step, purpose, index). So requests do not depend on
the order in which answers arrive, a rerun of a day draws the same, and two policies evaluated on the
same sessions meet the same candidates (common random numbers).
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014); overwrites ``x``."""
    x ^= x >> np.uint64(30)
    x *= _FIRST
    x ^= x >> np.uint64(27)
    x *= _SECOND
    x ^= x >> np.uint64(31)
    return x


def key(*parts: np.ndarray | int) -> np.ndarray:
    """Integers, each a scalar or [n], to uint64 keys [n] (or [1])."""
    out = np.zeros(1, dtype=np.uint64)
    for part in parts:
        values = np.atleast_1d(np.asarray(part)).astype(np.int64).astype(np.uint64)
        out = _mix((out + _GOLDEN) ^ (values * _SECOND))
    return out


def _bits(keys: np.ndarray, purpose: int, count: int) -> np.ndarray:
    counters = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(purpose << 32)) * _GOLDEN
    return _mix(keys[:, None] + counters[None, :])


def uniform(keys: np.ndarray, purpose: int, *shape: int) -> np.ndarray:
    """float64[n, *shape] in the open interval (0, 1)."""
    bits = _bits(keys, purpose, int(np.prod(shape, dtype=int)))
    return (((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52).reshape(len(keys), *shape)


def normal(keys: np.ndarray, purpose: int, *shape: int) -> np.ndarray:
    """float32[n, *shape] standard normal, by Box and Muller: one hash gives two."""
    count = int(np.prod(shape, dtype=int))
    bits = _bits(keys, purpose, (count + 1) // 2)
    scale = np.float32(2.0**-32)
    radius = np.sqrt(-2.0 * np.log(((bits >> np.uint64(32)).astype(np.float32) + np.float32(0.5)) * scale))
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32) * (scale * np.float32(2.0 * np.pi))
    pair = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pair[:, :count].reshape(len(keys), *shape)
