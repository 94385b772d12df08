"""How far a day is from the days before it: bands of measures, stability of scores, calibration.

Pure functions of numbers; :mod:`training.validation.profiles` takes the numbers from the logs.

Scores are counted in bins of equal ratio, so that counts of days can be added and any quantile read
off them: bin b of a score x is floor(BINS_AN_OCTAVE * log2(max(x, LEAST_SCORE))).
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import norm, t

BINS_AN_OCTAVE = 16  # a bin is 4.4 % wide
LEAST_SCORE = 1e-6
PSI_BINS = 10

Histogram = Mapping[int, int]


@dataclass(frozen=True)
class Band:
    """Where a measure is expected, and whether its width was learnt from its spread over the days."""

    low: float
    middle: float
    high: float
    learnt: bool
    days: int


def band(
    values: Sequence[float], *, days_to_learn: int, alarm_rate: float, floor: float, unlearnt: float
) -> Band:
    """The band of the next day's value given those of the recent days.

    With ``days_to_learn`` days or more it is Student's prediction interval for one more day, which
    misses a day like the others at ``alarm_rate``, and at least ``floor`` of the mean on either side;
    with fewer it is ``unlearnt`` of the mean on either side. Raises ``ValueError`` without values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a band needs at least one day")
    middle = statistics.fmean(values)
    learnt = n >= max(days_to_learn, 2)
    if learnt:
        spread = float(t.ppf(1.0 - alarm_rate / 2.0, n - 1)) * math.sqrt(1.0 + 1.0 / n)
        half = max(spread * statistics.stdev(values), floor * abs(middle))
    else:
        half = unlearnt * abs(middle)
    return Band(middle - half, middle, middle + half, learnt, n)


def pooled(histograms: Sequence[Histogram]) -> Counter[int]:
    total: Counter[int] = Counter()
    for one in histograms:
        total.update(one)
    return total


def quantile(histogram: Histogram, q: float) -> float | None:
    """The q-quantile of the scores behind a histogram, to within a bin; None of an empty one."""
    rank = q * sum(histogram.values())
    for place in sorted(histogram):
        rank -= histogram[place]
        if rank <= 0:
            inside = 1.0 + rank / histogram[place]
            return 2.0 ** ((place + inside) / BINS_AN_OCTAVE)
    return None


def psi(now: Histogram, before: Histogram) -> float:
    """Population stability index: sum of (a - b) ln(a / b) over tenths of ``before``.

    a and b are the shares of now and before in a tenth, which is made of whole bins of the
    histograms; half a row is added to each count, for an empty one has no logarithm. 0 for equal
    shares. Raises ``ValueError`` when either is empty.
    """
    rows_now, rows_before = sum(now.values()), sum(before.values())
    if not rows_now or not rows_before:
        raise ValueError("the index compares two histograms that hold something")
    cells: list[list[int]] = [[0, 0]]
    for place in sorted({*now, *before}):
        if cells[-1][1] * PSI_BINS >= rows_before:
            cells.append([0, 0])
        cells[-1][0] += now.get(place, 0)
        cells[-1][1] += before.get(place, 0)
    total = 0.0
    for count_now, count_before in cells:
        a = (count_now + 0.5) / (rows_now + 0.5 * len(cells))
        b = (count_before + 0.5) / (rows_before + 0.5 * len(cells))
        total += (a - b) * math.log(a / b)
    return total


@dataclass(frozen=True)
class CalibrationSums:
    """Sums over users of a head's predictions p and observations y, each summed over the user's rows."""

    rows: float = 0.0
    p: float = 0.0
    y: float = 0.0
    pp: float = 0.0
    py: float = 0.0
    yy: float = 0.0

    def __add__(self, other: "CalibrationSums") -> "CalibrationSums":
        return CalibrationSums(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    @property
    def values(self) -> tuple[float, ...]:
        return (self.rows, self.p, self.y, self.pp, self.py, self.yy)


@dataclass(frozen=True)
class Ratio:
    """predicted / observed, with an interval by users: a user's rows are not independent."""

    value: float
    lower: float
    upper: float


def _log_ratio(sums: CalibrationSums) -> tuple[float, float] | None:
    """ln(predicted / observed) and its standard error (delta method over users)."""
    if sums.p <= 0 or sums.y <= 0:
        return None
    ratio = sums.p / sums.y
    variance = max(sums.pp - 2.0 * ratio * sums.py + ratio * ratio * sums.yy, 0.0)
    return math.log(ratio), math.sqrt(variance) / sums.p


def calibration(sums: CalibrationSums, confidence: float) -> Ratio | None:
    """None where nothing was predicted or observed."""
    found = _log_ratio(sums)
    return None if found is None else _interval(*found, confidence)


def calibration_change(now: CalibrationSums, before: CalibrationSums, confidence: float) -> Ratio | None:
    """Today's predicted / observed over that of the recent days; 1 when a head errs as it always did."""
    a, b = _log_ratio(now), _log_ratio(before)
    return None if a is None or b is None else _interval(a[0] - b[0], math.hypot(a[1], b[1]), confidence)


def _interval(logarithm: float, error: float, confidence: float) -> Ratio:
    half = float(norm.ppf(0.5 + confidence / 2.0)) * error
    # a few positives give an interval without end, which a float need not hold
    return Ratio(
        math.exp(logarithm), math.exp(max(logarithm - half, -50.0)), math.exp(min(logarithm + half, 50.0))
    )
