"""Bands, the stability index and calibration as functions of numbers."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.validation.drift import (
    BINS_AN_OCTAVE,
    CalibrationSums,
    band,
    calibration,
    calibration_change,
    pooled,
    psi,
    quantile,
)

histograms = st.dictionaries(st.integers(-300, 300), st.integers(1, 500), min_size=1, max_size=40)
LEARN = {"days_to_learn": 5, "alarm_rate": 1e-3, "floor": 0.1, "unlearnt": 0.5}


def histogram(scores: np.ndarray) -> Counter[int]:
    return Counter(np.floor(BINS_AN_OCTAVE * np.log2(scores)).astype(int).tolist())


@given(histograms)
def test_a_day_like_the_others_has_no_drift(counts: dict[int, int]) -> None:
    assert psi(counts, counts) == pytest.approx(0.0, abs=1e-12)


@given(histograms, histograms)
def test_the_index_is_never_negative_and_finite(now: dict[int, int], before: dict[int, int]) -> None:
    assert 0.0 <= psi(now, before) < math.inf


def test_the_index_is_that_of_the_textbook() -> None:
    """Two normals one standard deviation apart in the logarithm: PSI tends to 1, less for tenths."""
    rng = np.random.default_rng(1)
    before, now = (np.exp(rng.normal(mean, 1.0, 200_000) * 0.5) for mean in (0.0, 1.0))
    edges = np.quantile(before, np.linspace(0, 1, 11)[1:-1])
    a = np.bincount(np.digitize(now, edges), minlength=10) / len(now)
    b = np.bincount(np.digitize(before, edges), minlength=10) / len(before)
    assert psi(histogram(now), histogram(before)) == pytest.approx(((a - b) * np.log(a / b)).sum(), rel=0.05)


def test_an_index_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="hold something"):
        psi({}, {1: 1})


@given(st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_a_quantile_is_right_to_within_a_bin(scores: list[float], q: float) -> None:
    found = quantile(histogram(np.array(scores)), q)
    exact = float(np.quantile(scores, q, method="inverted_cdf"))
    assert abs(math.log2(found / exact)) <= 1.001 / BINS_AN_OCTAVE


@given(st.lists(histograms, max_size=4))
def test_days_add_up(days: list[dict[int, int]]) -> None:
    assert sum(pooled(days).values()) == sum(sum(day.values()) for day in days)


def test_a_band_is_learnt_from_enough_days_and_has_a_floor() -> None:
    wide = band([1.0, 1.2], **LEARN)
    assert not wide.learnt and (wide.low, wide.high) == pytest.approx((0.55, 1.65))
    flat = band([1.0] * 6, **LEARN)
    assert flat.learnt and (flat.low, flat.high) == pytest.approx((0.9, 1.1))
    with pytest.raises(ValueError, match="at least one day"):
        band([], **LEARN)


def test_a_learnt_band_misses_good_days_as_seldom_as_it_says() -> None:
    rng = np.random.default_rng(0)
    rules = LEARN | {"alarm_rate": 0.05, "floor": 0.0}
    outside = 0
    for _ in range(4_000):
        *past, today = rng.normal(10.0, 2.0, 8).tolist()
        found = band(past, **rules)
        outside += not found.low <= today <= found.high
    assert outside / 4_000 == pytest.approx(0.05, abs=0.012)


def sums(p: np.ndarray, y: np.ndarray, rows: int) -> CalibrationSums:
    values = (p.sum(), y.sum(), (p * p).sum(), (p * y).sum(), (y * y).sum())
    return CalibrationSums(float(rows), *map(float, values))


def test_the_interval_of_calibration_holds_the_truth_when_users_differ() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        rate = rng.beta(2, 8, 300)  # by user, 20 rows each; predicted 25 % too high
        p, y = 20 * rate * 1.25, rng.binomial(20, rate).astype(float)
        found = calibration(sums(p, y, 6_000), 0.95)
        held += found.lower <= 1.25 <= found.upper
    assert held / 400 == pytest.approx(0.95, abs=0.03)


def test_a_head_that_errs_as_ever_has_not_changed() -> None:
    rng = np.random.default_rng(4)
    days = []
    for _ in range(2):
        rate = rng.beta(2, 8, 400)
        days.append(sums(20 * rate * 1.6, rng.binomial(20, rate).astype(float), 8_000))
    change = calibration_change(*days, 0.99)
    assert change.lower < 1.0 < change.upper
    assert calibration(days[0], 0.99).lower > 1.3


def test_nothing_observed_has_no_calibration() -> None:
    assert calibration(CalibrationSums(10, 1.0, 0.0, 1.0, 0.0, 0.0), 0.95) is None
    assert calibration_change(CalibrationSums(), CalibrationSums(), 0.95) is None
