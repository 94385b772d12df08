"""The posterior of session returns: what was planted is found, and what was not is not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.session_log import BEST, FEATURES, FUSION, Sessions, in_parts
from training.contract.errors import DataError
from training.contract.fusion import Head
from training.returns import Features, ReturnModel, fit, fit_like, learn, learn_parts, of_transitions
from training.returns.model import traits

STATIC = FUSION.static_action
PROBES = np.array([BEST, [-0.8, -0.8], [0.9, 0.4], [-0.2, 0.7], [0.1, -0.5]])


def model_of(sessions: Sessions, count: int, seed: int = 0) -> ReturnModel:
    return fit(FEATURES, of_transitions(FEATURES, sessions.log(count, seed)))


def differences(model: ReturnModel, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation float64[n] of what each action returns over static weights, for a user at 0."""
    state = np.zeros((1, 2))
    origin = model.functional(state, STATIC[None])
    means, covariance = model.effects(np.stack([model.functional(state, a[None]) - origin for a in actions]))
    return means, np.sqrt(np.maximum(np.diag(covariance), 0.0))


def test_a_quadratic_effect_is_recovered_and_covered() -> None:
    sessions = Sessions()
    truth = sessions.true_return(PROBES) - sessions.true_return(STATIC)
    scaled = []
    for seed in range(8):
        means, deviations = differences(model_of(sessions, 3_000, seed), PROBES)
        assert np.abs(means - truth).max() < 0.1 * np.abs(truth).max()
        scaled.append((means - truth) / deviations)
    z = np.array(scaled)
    assert (np.abs(z) < 1.96).mean() > 0.85 and np.abs(z).max() < 4.0
    assert np.square(z).mean() > 0.2  # nor is it so wide that it says nothing


def test_a_judge_leaves_nothing_out_of_a_surface_and_is_less_sure() -> None:
    model = model_of(Sessions(effect=0.0, interaction=1.0), 1_500)
    careful = model.cautious()
    sizes = {name: part.stop - part.start for name, part in FEATURES.groups.items()}
    surface = {name: careful.variances[name] * sizes[name] for name in FEATURES.surfaces[0]}
    assert min(surface.values()) >= 0.2499 * max(surface.values())
    assert all(careful.variances[name] >= model.variances[name] for name in model.variances)
    assert (differences(careful, PROBES)[1] > 2.0 * differences(model, PROBES)[1]).all()  # it said: nothing


def test_less_of_a_log_is_less_sure() -> None:
    few, many = (differences(model_of(Sessions(), count), PROBES)[1] for count in (400, 4_000))
    assert (many < 0.6 * few).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_log_without_an_effect_gives_none(seed: int) -> None:
    model = model_of(Sessions(effect=0.0), 2_000, seed)
    means, _ = differences(model, PROBES)
    assert np.abs(means).max() < 0.3  # the deviation of a session's return is 2
    assert model.explained < 0.05


def test_what_a_user_has_to_do_with_the_weights_is_learnt_where_there_is_something() -> None:
    none, some = (model_of(Sessions(interaction=c), 3_000) for c in (0.0, 2.0))
    assert some.variances["entry 0"] > 100 * max(some.variances["entry 1"], 1e-9)
    assert none.variances["entry 0"] < 1e-2 * some.variances["entry 0"]
    for model, slope in ((none, 0.0), (some, 2.0)):
        action = np.array([[0.9, 0.0]])
        per_unit = FEATURES.of_actions(action)[0, 0] - FEATURES.of_actions(STATIC[None])[0, 0]
        gains = [
            (model.functional(s[None], action) - model.functional(s[None], STATIC[None])) @ model.theta
            for s in np.array([[-1.0, 0.0], [1.0, 0.0]])
        ]
        assert gains[1] - gains[0] == pytest.approx(2.0 * slope * per_unit, abs=0.15)


def test_traits_are_the_directions_of_the_state_that_change_what_a_weight_brings() -> None:
    sessions = Sessions(interaction=2.0)
    statistics = of_transitions(FEATURES, sessions.log(3_000))
    found = traits(fit(FEATURES, statistics), statistics, 5, np.ones(2))
    assert 1 <= found.shape[1] <= FEATURES.k  # no more than there are weights
    first = found[:, 0] / np.abs(found[:, 0]).max()
    np.testing.assert_allclose(np.abs(first), [1.0, 0.0], atol=0.05)
    assert found[:, 0] @ found[:, 0] == pytest.approx(1.0, abs=0.1)  # the state's entries have variance 1
    assert traits(fit(FEATURES, statistics), statistics, 0, np.ones(2)).shape == (2, 0)
    # an entry that first requests hardly show says nothing of what it is later
    still = traits(fit(FEATURES, statistics), statistics, 5, np.array([20.0, 1.0]))
    assert (still[0] == 0.0).all()


def test_each_trait_has_a_surface_of_its_own() -> None:
    """What no product of the state with the log-shares can say: who suffers more from what is far off."""
    sessions = Sessions(interaction=2.0, curvature=1.5)
    data = sessions.log(6_000)
    learnt, entries = learn(FUSION, data, 1.0, rank=1), fit(FEATURES, of_transitions(FEATURES, data))
    missed = {}
    for name, model in (("learnt", learnt), ("entries", entries)):
        missed[name] = 0.0
        for state in np.array([[-1.2, 0.0], [1.2, 0.0]]):
            gains, _ = model.surface(state).gains(PROBES, STATIC)
            states = np.tile(state, (len(PROBES), 1))
            truth = sessions.true_return(PROBES, states) - sessions.true_return(STATIC, state[None])
            missed[name] += np.abs(gains - truth).max()
    assert missed["learnt"] < 0.5 * missed["entries"]


@pytest.mark.parametrize("rank", [0, 2])
def test_surfaces_and_slopes_say_what_functionals_do(rank: int) -> None:
    model = learn(FUSION, Sessions(interaction=1.0, curvature=0.5).log(600), 1.0, rank)
    rng = np.random.default_rng(3)
    states, actions = rng.normal(size=(2, 2)), rng.uniform(-1, 1, (4, 2))
    for state in states:
        origin = model.functional(state[None], STATIC[None])
        functionals = np.stack([model.functional(state[None], a[None]) - origin for a in actions])
        means, covariance = model.effects(functionals)
        gains, deviations = model.surface(state).gains(actions, STATIC)
        np.testing.assert_allclose(gains, means, atol=1e-8)
        np.testing.assert_allclose(deviations, np.sqrt(np.diag(covariance)), atol=1e-6)
    here, there = (model.surface(state).gains(actions, STATIC)[0] for state in states)
    slopes = model.slopes(actions) - model.slopes(STATIC[None])
    np.testing.assert_allclose(there - here, slopes @ (states[1] - states[0]), atol=1e-8)


def test_users_who_come_again_widen_it() -> None:
    alone = model_of(Sessions(), 2_000)
    sessions = Sessions(users=20, of_users=2.0)
    log = sessions.log(2_000)
    # a user's sessions share their weights: as if an arm had been drawn for the user
    first = np.unique(log.users.numpy(), return_index=True)[1]
    place = np.searchsorted(log.users.numpy()[first], log.users.numpy())
    together = replace(log, actions=log.actions[first][place])
    again = fit(FEATURES, of_transitions(FEATURES, together))
    assert 1.0 <= alone.design_effect < 2.0
    assert again.design_effect > 3.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 4), min_size=1, max_size=9))
def test_a_functional_is_the_mean_of_its_pairs_and_of_static_less_itself_nothing(rows) -> None:
    values = np.array(rows)
    states, actions = values[:, :2], values[:, 2:]
    each = np.stack([MODEL.functional(s[None], a[None]) for s, a in zip(states, actions, strict=True)])
    np.testing.assert_allclose(MODEL.functional(states, actions), each.mean(axis=0), atol=1e-9)
    static = MODEL.functional(states, np.tile(STATIC, (len(states), 1)))
    mean, covariance = MODEL.effects((static - static)[None])
    assert mean == 0.0 and covariance == 0.0


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 1.0), st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
def test_a_share_of_every_interval_is_its_own_features_whatever_the_intervals(scale, action) -> None:
    heads = tuple(
        Head(head.name, head.beta, head.low * scale, head.high * scale, head.static * scale)
        for head in FUSION.heads
    )
    other = Features(replace(FUSION, heads=heads), 2)
    at = np.array([action])
    np.testing.assert_allclose(other.of_actions(at), FEATURES.of_actions(at), atol=1e-12)


def test_a_head_of_both_signs_is_read_with_its_sign() -> None:
    heads = (replace(FUSION.heads[0], low=-2.0), FUSION.heads[1])
    features = Features(replace(FUSION, heads=heads), 2)
    below, above = features.of_actions(np.array([[-0.5, 0.0], [0.5, 0.0]]))
    assert below[0] == -above[0] != 0.0


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_the_search_ends_where_it_would_from_nothing_when_it_begins_at_a_like_model(factor: float) -> None:
    data = in_parts(Sessions(), Sessions(best=(-0.7, 0.8), noise=4.0), 2_000)
    model, parts = learn_parts(FUSION, data, 1.0, rank=1)
    assert learn(FUSION, data, 1.0, rank=1).theta.tolist() == model.theta.tolist()
    statistics = parts.leaning(factor)
    near, anew = fit_like(model, statistics), fit(model.features, statistics)
    (means, deviations), (wanted, wide) = (differences(one, PROBES) for one in (near, anew))
    assert np.abs(means - wanted).max() < 0.1 * wide.max()
    np.testing.assert_allclose(deviations, wide, rtol=0.1)
    assert near.design_effect == pytest.approx(anew.design_effect, rel=0.05)


def test_few_sessions_are_refused() -> None:
    with pytest.raises(DataError, match="49 sessions are too few"):
        model_of(Sessions(), 49)


MODEL = model_of(Sessions(interaction=1.0), 800)
