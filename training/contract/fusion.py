"""The fusion formula: predictions of every head folded into the one score that orders the list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np

from training.contract.arrays import Float32Array, Float64Array
from training.contract.errors import DataError

Form = Literal["log_sum", "sum"]
AT_BOUND = 0.99  # an action's entry beyond it, to either side, counts as lying on a bound of its weight
_Array = TypeVar("_Array", bound=np.ndarray)


@dataclass(frozen=True)
class Head:
    """One prediction of the upstream multi-task model.

    ``low`` and ``high`` bound its fusion weight; ``beta`` smooths the logarithm; a score must lie
    in ``[0, maximum]`` (1 for a probability, the unit of the head otherwise).
    """

    name: str
    beta: float
    low: float
    high: float
    static: float
    maximum: float = 1.0


@dataclass(frozen=True)
class Fusion:
    """f(o | α) = Σ_i α_i · log(o_i + β_i), eq. (1), with α_i in its own interval.

    An *action* is α scaled to [-1, 1], interval by interval; *weights* are α itself. The form ``sum`` is
    the plain weighted sum Σ_i α_i · o_i, which xMTF (arXiv 2504.05669) holds against eq. (1).
    """

    heads: tuple[Head, ...]
    form: Form = "log_sum"

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(head.name for head in self.heads)

    @cached_property
    def low(self) -> Float64Array:
        return _constant([head.low for head in self.heads])

    @cached_property
    def high(self) -> Float64Array:
        return _constant([head.high for head in self.heads])

    @cached_property
    def beta(self) -> Float64Array:
        return _constant([head.beta for head in self.heads])

    @cached_property
    def static_action(self) -> Float32Array:
        """float32[k]: the hand-tuned weights as an action."""
        static = np.array([head.static for head in self.heads], dtype=np.float64)
        return _read_only(self.to_action(static).astype(np.float32))

    def to_weights(self, action: Float32Array | Float64Array) -> Float64Array:
        """Action in [-1, 1], shape [..., k], to weights α in their intervals."""
        return self.low + (np.asarray(action, dtype=np.float64) + 1.0) * 0.5 * (self.high - self.low)

    def to_action(self, weights: Float64Array) -> Float64Array:
        """Weights, truncated to their intervals, scaled to [-1, 1]; the inverse of the above."""
        clipped = np.clip(np.asarray(weights, dtype=np.float64), self.low, self.high)
        return 2.0 * (clipped - self.low) / (self.high - self.low) - 1.0

    def score(self, predictions: Float32Array | Float64Array, weights: Float64Array) -> Float64Array:
        """Eq. (1): predictions [..., n, k] and weights [..., k] give scores [..., n]."""
        terms = np.asarray(predictions, dtype=np.float64)
        if self.form == "log_sum":
            terms = terms + self.beta
            np.log(terms, out=terms)
        scores: Float64Array = np.einsum("...nk,...k->...n", terms, weights)
        return scores

    def matrix(self, scores: Mapping[str, Sequence[float] | np.ndarray], count: int) -> Float64Array:
        """Columns of a request's scores as float64[count, k], in the order of the heads.

        A missing head is scored 0 for every candidate: its term is then the same for all of them
        and cannot change their order. Raises :class:`DataError` naming an unknown head, a column of
        the wrong length, or the first value that is not a number in the head's range.
        """
        unknown = [name for name in scores if name not in self.names]
        if unknown:
            raise DataError(f"unknown head {unknown[0]!r}; the settings name {', '.join(self.names)}")
        matrix = np.zeros((count, len(self.heads)))
        for index, head in enumerate(self.heads):
            if head.name not in scores:
                continue
            column = np.asarray(scores[head.name], dtype=np.float64)
            if column.shape != (count,):
                raise DataError(
                    f"scores.{head.name} has shape {column.shape}, expected ({count},): one value a candidate"
                )
            good = (column >= 0.0) & (column <= head.maximum)  # False for NaN
            if not good.all():
                row = int(np.argmin(good))
                raise DataError(
                    f"scores.{head.name}[{row}] is {column[row]}, expected a number in [0, {head.maximum:g}]"
                )
            matrix[:, index] = column
        return matrix


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Places [..., k] of the ``k`` best of scores [..., n], best first; ties keep the candidates' order."""
    n = scores.shape[-1]
    if scores.ndim == 1 and k < n // 4:  # selecting first is worth it only when most are dropped
        bound = np.partition(scores, n - k)[n - k]
        kept = np.flatnonzero(scores >= bound)
        return kept[np.argsort(-scores[kept], kind="stable")][:k]
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def _constant(values: Sequence[float]) -> Float64Array:
    return _read_only(np.array(values, dtype=np.float64))


def _read_only(array: _Array) -> _Array:
    """An array kept for every later request, so nobody may write to it."""
    array.flags.writeable = False
    return array
