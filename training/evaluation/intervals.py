"""Estimates of policies with intervals: bootstraps over sessions, paired between policies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

Interval = dict[str, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Estimates:
    """V̂ of each policy on the data, and on R resamples of its sessions (the same for every policy).

    ``interval`` is Student's t with R − 1 degrees of freedom around the value; its standard error is the
    root mean square deviation of the replicates from that value. It holds the sampling of sessions, the
    seed of a fit, and the bias that less data brings (the deviation from their own mean would leave
    that out). Percentiles are not used: they would need hundreds of fits.
    """

    values: Mapping[str, float]
    replicates: Mapping[str, np.ndarray]  # float64[R]
    confidence: float

    def interval(self, name: str) -> Interval:
        return self._around(self.values[name], self.replicates[name])

    def difference(self, name: str, other: str) -> Interval:
        """Interval of V̂(name) − V̂(other), paired by resample."""
        return self._around(
            self.values[name] - self.values[other], self.replicates[name] - self.replicates[other]
        )

    def _around(self, value: float, replicates: np.ndarray) -> Interval:
        quantile = student_t.ppf(0.5 + self.confidence / 2.0, len(replicates) - 1)
        half = float(quantile * np.sqrt(np.square(replicates - value).mean()))
        return {"lower": value - half, "value": value, "upper": value + half}


def renamed(values: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """A mapping with some keys called otherwise, in the same order."""
    return {names.get(name, name): value for name, value in values.items()}


def mean_interval(values: np.ndarray, confidence: float) -> Interval:
    """Student's t interval of the mean of independent ``values`` [n], n ≥ 2."""
    mean, error = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
    half = float(student_t.ppf(0.5 + confidence / 2.0, len(values) - 1)) * error
    return {"lower": mean - half, "value": mean, "upper": mean + half}


def resample(sessions: Tensor, replicates: int, generator: torch.Generator) -> Tensor:
    """How often each session is in the data (row 0: once) and in R resamples: int64[R + 1, numbers].

    ``sessions`` int64[N] are the rows' session numbers; a number that no row has counts 0.
    """
    present = torch.unique(sessions)
    numbers = int(present[-1]) + 1
    counts = torch.zeros(replicates + 1, numbers, dtype=torch.int64)
    counts[0, present] = 1
    for r in range(1, replicates + 1):
        drawn = present[torch.randint(len(present), (len(present),), generator=generator)]
        counts[r] = torch.bincount(drawn, minlength=numbers)
    return counts


def effective_size(weights: np.ndarray) -> np.ndarray:
    """Kish's effective sample size (Σ w)² / Σ w² over the last axis; 0 where every weight is 0."""
    total, square = weights.sum(axis=-1), np.square(weights).sum(axis=-1)
    return np.divide(total**2, square, out=np.zeros_like(total), where=square > 0)
