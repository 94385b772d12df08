"""Of a night's policies the one that goes on: the best by lower bounds that hold for all at once."""

from collections.abc import Collection
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from training.evaluation.intervals import Estimates, Interval

RIVAL, SIMPLEST = "static", "constant"
_FEW = 100  # replicates, of which a quantile is luck


def choose(estimates: Estimates, pool: Collection[str]) -> dict[str, Any]:
    """The member of ``pool`` whose difference to static weights has the highest simultaneous lower bound.

    The bounds are d_i − q · sd_i, with q the quantile of max_i |d*_i − d_i| / sd_i over the replicates: with
    the stated confidence all hold together, so the best of many is not the luckiest of many. Of few
    replicates, as fits have, q is Student's t by Bonferroni. One that is not shown to be better than the
    constant, where that is in the pool, makes way for it: the gate would refuse it. Returns ``chosen``, and
    ``pool``, each member's interval.
    """
    found = simultaneous(estimates, pool, RIVAL)
    best = max(found, key=lambda name: found[name]["lower"])
    if SIMPLEST in found and best != SIMPLEST and estimates.difference(best, SIMPLEST)["lower"] <= 0.0:
        best = SIMPLEST
    return {"chosen": best, "pool": found}


def simultaneous(estimates: Estimates, names: Collection[str], rival: str) -> dict[str, Interval]:
    """By name the difference to ``rival``, in intervals that hold for all of ``names`` at once."""
    value = np.array([estimates.values[name] - estimates.values[rival] for name in names])
    drawn = np.stack([estimates.replicates[name] - estimates.replicates[rival] for name in names])
    deviation = np.sqrt(np.square(drawn - value[:, None]).mean(axis=1))
    scaled = np.divide(
        np.abs(drawn - value[:, None]),
        deviation[:, None],
        out=np.zeros_like(drawn),
        where=deviation[:, None] > 0.0,
    )
    quantile = _quantile(scaled.max(axis=0), estimates.confidence, len(names))
    half = quantile * deviation
    return {
        name: {"lower": float(v - h), "value": float(v), "upper": float(v + h)}
        for name, v, h in zip(names, value, half, strict=True)
    }


def _quantile(largest: np.ndarray, confidence: float, members: int) -> float:
    """q of ``largest`` float64[R], the largest scaled deviation among the members, by replicate."""
    if len(largest) >= _FEW:
        return float(np.quantile(largest, confidence))
    return float(student_t.ppf(1.0 - 0.5 * (1.0 - confidence) / members, len(largest) - 1))
