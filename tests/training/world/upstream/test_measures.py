"""AUC and calibration against scikit-learn, a bootstrap and known answers."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from training.world.upstream.calibration import Calibration
from training.world.upstream.measures import auc, calibration


@pytest.mark.parametrize("positives", [12, 400])
def test_auc_is_scikit_learns_and_its_interval_a_bootstraps(positives: int) -> None:
    rng = np.random.default_rng(1)
    labels = np.r_[np.ones(positives), np.zeros(2_000)]
    scores = np.round(rng.normal(size=len(labels)) + 0.8 * labels, 1)  # with ties
    found = auc(labels, scores)
    assert found["value"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["positives"] == positives
    resampled = [
        roc_auc_score(labels[rows], scores[rows])
        for rows in (rng.integers(len(labels), size=len(labels)) for _ in range(150))
    ]
    lower, upper = np.percentile(resampled, [2.5, 97.5])
    assert found["lower"] == pytest.approx(lower, abs=0.04)
    assert found["upper"] == pytest.approx(upper, abs=0.04)


def test_auc_of_one_kind_of_label_is_not_a_number() -> None:
    assert auc(np.zeros(5), np.arange(5.0)) == {"value": None, "lower": None, "upper": None, "positives": 0}
    one = auc(np.array([0.0, 0.0, 1.0]), np.arange(3.0))
    assert one["lower"] < one["value"] == 1.0


def test_calibration_of_true_probabilities_is_near_perfect_and_of_halved_ones_is_not() -> None:
    rng = np.random.default_rng(2)
    p = rng.uniform(0.1, 0.9, 20_000)
    y = (rng.random(len(p)) < p).astype(float)
    good, bad = calibration(y, p), calibration(y, p / 2)
    assert good["ratio"] == pytest.approx(1.0, abs=0.02)
    assert good["ece"] < 0.02
    assert bad["ratio"] == pytest.approx(0.5, abs=0.01)
    assert bad["ece"] == pytest.approx(0.25, abs=0.02)


def test_each_kind_of_head_is_calibrated_by_its_link() -> None:
    rng = np.random.default_rng(3)
    n = 40_000
    f = rng.normal(size=(n, 3))
    click = (rng.random(n) < 1 / (1 + np.exp(-(0.5 + 2.0 * f[:, 0])))).astype(float)
    rare = (rng.random(n) < 0.001).astype(float)
    seconds = rng.gamma(2.0, np.exp(1.0 + 0.5 * f[:, 2]) / 2.0)
    labels = np.stack([click, rare, seconds], axis=1)
    heads = ("click", "hate", "play_time")
    found = Calibration.learn(heads, f, labels, np.array([0.5, 0.001, 3.0]))
    assert found.intercept[0] == pytest.approx(0.5, abs=0.05)
    assert found.slope[0] == pytest.approx(2.0, abs=0.08)
    assert 0.1 < found.slope[1] < 0.7  # nothing depends on f: drawn down, and held by the prior
    assert (found.intercept[2], found.slope[2]) == pytest.approx((1.0, 0.5), abs=0.03)
    predicted = found.apply(f)
    assert predicted[:, 0].mean() == pytest.approx(click.mean(), rel=1e-6)
    assert predicted[:, 2].mean() == pytest.approx(seconds.mean(), rel=1e-6)
    assert predicted[:, 1].mean() == pytest.approx(0.001, rel=0.4)
    for i in range(3):
        assert (np.argsort(predicted[:, i]) == np.argsort(f[:, i])).all()


def test_outputs_that_order_the_wrong_way_keep_their_order() -> None:
    rng = np.random.default_rng(4)
    f = rng.normal(size=(5_000, 1))
    y = (rng.random((5_000, 1)) < 1 / (1 + np.exp(2.0 * f))).astype(float)
    found = Calibration.learn(("click",), f, y, np.array([0.5]))
    assert found.slope == (0.1,)
    assert found.apply(f).mean() == pytest.approx(y.mean(), abs=0.02)
