import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from training.contract import exploration
from training.contract.exploration import TruncatedNormal, UniformBox, session_uniforms

MEANS = st.floats(-1.0, 1.0, width=32)
STDS = st.sampled_from([1e-3, 0.02, 0.1, 0.5, 1.0, 3.0, 100.0])


def reference(mean: float, std: float):
    return stats.truncnorm((-1 - mean) / std, (1 - mean) / std, loc=mean, scale=std)


@given(mean=MEANS, std=STDS, where=st.floats(0.0, 1.0))
def test_log_density_is_scipys(mean, std, where):
    low, high = max(-1.0, mean - 5 * std), min(1.0, mean + 5 * std)
    action = low + where * (high - low)
    distribution = TruncatedNormal(np.array([mean]), std)
    expected = reference(mean, std).logpdf(action)
    assert distribution.log_density(np.array([action])) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("mean", [-1.0, -0.97, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("std", [0.05, 0.1, 1.0])
def test_density_integrates_to_one(mean, std):
    distribution = TruncatedNormal(np.array([mean]), std)
    mass, _ = integrate.quad(
        lambda a: math.exp(distribution.log_density(np.array([a]))), -1, 1, points=[mean], limit=200
    )
    assert mass == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.95, 0.1), (-1.0, 0.1), (1.0, 1.0), (0.3, 30.0)])
def test_samples_follow_the_density(mean, std):
    distribution = TruncatedNormal(np.full(20_000, mean, dtype=np.float32), std)
    sample = distribution.at(np.random.default_rng(3).random(20_000))
    result = stats.kstest(sample.astype(np.float64), reference(mean, std).cdf)
    assert result.pvalue > 1e-3
    # and the logged densities weight the sample as importance weights must: E[1/p] = size of the box
    one = TruncatedNormal(np.array([mean]), std)
    weights = [math.exp(-one.log_density(np.array([a]))) for a in sample[:5_000]]
    if std >= 1.0:  # for a narrow distribution this mean has no finite variance worth testing
        assert np.mean(weights) == pytest.approx(2.0, rel=0.1)


@given(mean=st.lists(MEANS, min_size=1, max_size=12), std=STDS, seed=st.integers(0, 2**32))
def test_samples_lie_in_the_box_with_a_finite_density(mean, std, seed):
    distribution = TruncatedNormal(np.array(mean, dtype=np.float32), std)
    action = distribution.at(np.random.default_rng(seed).random(len(mean)))
    assert action.dtype == np.float32 and action.shape == (len(mean),)
    assert (np.abs(action) <= 1.0).all()
    assert math.isfinite(distribution.log_density(action))


def test_entries_are_independent():
    whole = TruncatedNormal(np.array([0.2, -0.9]), 0.3)
    parts = [TruncatedNormal(np.array([mean]), 0.3) for mean in (0.2, -0.9)]
    action = np.array([0.1, -0.7])
    expected = sum(part.log_density(action[i : i + 1]) for i, part in enumerate(parts))
    assert whole.log_density(action) == pytest.approx(expected)


def test_outside_the_box_has_no_density():
    assert TruncatedNormal(np.array([0.0]), 1.0).log_density(np.array([1.01])) == -math.inf


@pytest.mark.parametrize("mean", [-1.0, -0.9, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("width", [0.15, 1.5])
def test_box_samples_follow_their_density_which_integrates_to_one(mean, width):
    low, high = max(-1.0, mean - width), min(1.0, mean + width)
    box = UniformBox(np.full(20_000, mean, dtype=np.float32), width)
    sample = box.at(np.random.default_rng(3).random(20_000)).astype(np.float64)
    assert stats.kstest(sample, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    one = UniformBox(np.array([mean]), width)
    mass, _ = integrate.quad(
        lambda a: math.exp(one.log_density(np.array([a]))), -1, 1, points=[low, high], limit=200
    )
    assert mass == pytest.approx(1.0, abs=1e-6)
    # E[1/p] is the volume where there is density, exactly: the density is constant there
    assert np.mean([math.exp(-one.log_density(np.array([a]))) for a in sample[:100]]) == pytest.approx(
        high - low, rel=1e-6
    )


@given(
    mean=st.lists(MEANS, min_size=1, max_size=12),
    width=st.sampled_from([1e-3, 0.15, 2.0]),
    seed=st.integers(0, 2**32),
)
def test_box_samples_lie_in_the_box_around_the_mean_with_a_finite_density(mean, width, seed):
    box = UniformBox(np.array(mean, dtype=np.float32), width)
    action = box.at(np.random.default_rng(seed).random(len(mean)))
    assert action.dtype == np.float32 and action.shape == (len(mean),)
    assert (np.abs(action) <= 1.0).all() and (np.abs(action - box.mean) <= width + 1e-6).all()
    assert math.isfinite(box.log_density(action))


def test_there_is_no_density_outside_of_the_box():
    assert UniformBox(np.array([0.0, 0.9]), 0.15).log_density(np.array([0.16, 0.9])) == -math.inf
    assert UniformBox(np.array([0.0, 0.9]), 0.15).log_density(np.array([0.1, 1.01])) == -math.inf
    assert UniformBox(np.array([0.0, 0.9]), 0.15).log_density(np.array([0.1, 0.95])) == pytest.approx(
        -math.log(0.3) - math.log(0.25)
    )


@given(
    st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=4),
    st.floats(0.05, 3.0),
    st.integers(0, 2**31),
)
def test_one_action_and_many_are_drawn_alike_with_the_same_density(mean, std, seed):
    mean = np.array(mean)
    action = exploration.sample(mean[None], std, np.random.default_rng(seed))
    assert (np.abs(action) <= 1.0).all()
    one = TruncatedNormal(mean, std)
    np.testing.assert_allclose(one.at(np.random.default_rng(seed).random(len(mean))), action[0], atol=1e-5)
    expected = one.log_density(action[0])
    assert exploration.log_density(action, mean[None], std)[0] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(
    st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=4),
    st.floats(0.01, 3.0),
    st.integers(0, 2**31),
)
def test_one_action_and_many_are_drawn_alike_with_the_same_density_in_a_box(mean, width, seed):
    mean = np.array(mean)
    uniforms = np.random.default_rng(seed).random(mean[None].shape)
    action = exploration.sample_box_at(mean[None], width, uniforms)
    assert (np.abs(action) <= 1.0).all() and (np.abs(action - mean) <= width + 1e-12).all()
    one = UniformBox(mean, width)
    np.testing.assert_allclose(one.at(np.random.default_rng(seed).random(len(mean))), action[0], atol=1e-6)
    expected = one.log_density(action[0])
    assert exploration.log_density_box(action, mean[None], width)[0] == pytest.approx(expected, rel=1e-9)
    assert exploration.log_density_box(mean[None] + 2 * width, mean[None], width)[0] == -np.inf


@given(
    st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=4),
    st.sampled_from([0.1, 0.316, 1.0]),
    st.lists(st.integers(0, 2**32 - 1).map(lambda n: n / 2**32), min_size=4, max_size=4),
)
def test_an_action_is_that_of_its_uniforms_whichever_form_draws_it(mean, scale, uniforms):
    mean, u = np.array(mean), np.array(uniforms[: len(mean)])
    normal, box = exploration.sample_at(mean, scale, u), exploration.sample_box_at(mean, scale, u)
    expected = [reference(m, scale).ppf(one) for m, one in zip(mean, u, strict=True)]
    np.testing.assert_allclose(normal, expected, atol=1e-6)
    np.testing.assert_allclose(TruncatedNormal(mean, scale).at(u), normal, atol=1e-5)
    np.testing.assert_allclose(UniformBox(mean, scale).at(u), box, atol=1e-6)


def test_a_session_deviates_one_way_while_each_of_its_actions_has_the_density_of_a_draw_of_its_own():
    """Over sessions, at a mean that moves: the marginal at every step is the truncated distribution."""
    means = np.linspace(-0.9, 0.9, 3)
    drawn = np.array(
        [
            [
                TruncatedNormal(np.full(2, mean), 0.5).at(session_uniforms(7, "mtf", 3, n, f"s{n}", 2))
                for mean in means
            ]
            for n in range(4_000)
        ],
        dtype=np.float64,
    )
    for step, mean in enumerate(means):
        for entry in range(2):
            assert stats.kstest(drawn[:, step, entry], reference(mean, 0.5).cdf).pvalue > 1e-3
    # the order of sessions is the same at every step, and entries are independent of each other
    assert stats.spearmanr(drawn[:, 0, 0], drawn[:, 2, 0]).statistic > 0.999
    assert abs(stats.spearmanr(drawn[:, 0, 0], drawn[:, 0, 1]).statistic) < 0.06


def test_a_session_has_uniforms_of_its_own_for_as_many_entries_as_there_may_be():
    """Of the settings' secrets, the epoch, the user and the session: another one gives others."""
    base = (7, "mtf", 3, 5, "s1")
    uniforms = session_uniforms(*base, 64)
    assert uniforms.shape == (64,) and len(set(uniforms.tolist())) == 64
    assert ((uniforms >= 0.0) & (uniforms < 1.0)).all()
    np.testing.assert_array_equal(session_uniforms(*base, 5), uniforms[:5])
    for others in (
        (8, *base[1:]),
        (7, "x", 3, 5, "s1"),
        (7, "mtf", 4, 5, "s1"),
        (7, "mtf", 3, 6, "s1"),
        (*base[:4], "s2"),
    ):
        assert not np.isin(session_uniforms(*others, 64), uniforms).any()
    many = np.concatenate([session_uniforms(7, "mtf", 3, 5, f"s{n}", 8) for n in range(4_000)])
    assert stats.kstest(many, stats.uniform.cdf).pvalue > 1e-3


def test_a_sessions_uniforms_are_these():
    """Other ones would change the deviation of every running session."""
    uniforms = session_uniforms(7, "mtf", 1462, 5, "5-1767614400000", 17)
    expected = [0.15949426870793104, 0.4443526240065694, 0.9899733946658671, 0.2121672797948122]
    np.testing.assert_allclose(uniforms[[0, 1, 15, 16]], expected, rtol=1e-15)
