"""Figures of stability on actions whose answer is known."""

import numpy as np
import pytest

from training.contract.errors import DataError
from training.evaluation import stability


def test_bound_share_counts_entries_on_either_bound():
    actions = np.array([[1.0, 0.0], [-1.0, 0.995], [0.5, 0.98], [0.0, 0.0]])
    assert stability.bound_share(actions) == 3 / 8


def test_quantiles_are_by_head():
    actions = np.stack([np.linspace(-1, 1, 101), np.zeros(101)], axis=1)
    quantiles = stability.action_quantiles(actions, ["click", "like"])
    assert quantiles["click"] == pytest.approx([-0.9, -0.5, 0.0, 0.5, 0.9])
    assert quantiles["like"] == [0.0] * 5


def test_jump_is_the_mean_absolute_change():
    assert stability.jump(np.zeros((4, 2)), np.full((4, 2), -0.25)) == 0.25


def test_seed_spread_is_the_deviation_within_a_state():
    actions = np.array([[[0.0, 0.5]], [[1.0, 0.5]]])  # two seeds, one state, two heads
    spread = stability.seed_spread(actions)
    assert spread == {"mean": pytest.approx(2**-0.5 / 2), "worst": pytest.approx(2**-0.5)}
    with pytest.raises(DataError, match="two seeds"):
        stability.seed_spread(actions[:1])


def test_distance_is_to_the_nearest_logged_action_and_the_threshold_to_others():
    rng = np.random.default_rng(0)
    logged = rng.normal(0.0, 0.1, (500, 2)).astype(np.float32)
    distances = stability.LoggedActions(logged, seed=0)
    assert distances.distances(logged).max() < 1e-3
    assert 0.0 < distances.threshold < 0.1
    far = distances.distances(np.array([[1.0, 1.0]], dtype=np.float32))
    nearest = np.sqrt(((logged - 1.0) ** 2).mean(axis=1)).min()
    assert far[0] == pytest.approx(nearest, rel=1e-4)


def test_a_large_log_is_thinned_and_a_tiny_one_gives_no_threshold():
    logged = np.random.default_rng(0).uniform(-1, 1, (12_000, 2)).astype(np.float32)
    assert len(stability.LoggedActions(logged, seed=0).reference) == 10_000
    held = stability.LoggedActions(np.repeat(logged[:500], 6, axis=0), seed=0)
    assert held.threshold == stability.LoggedActions(logged[:500], seed=0).threshold > 0.0
    assert stability.LoggedActions(logged[:1], seed=0).threshold == 0.0
