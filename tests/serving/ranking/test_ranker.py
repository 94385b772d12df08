from dataclasses import replace

import numpy as np
import pytest

from serving.policy.timed import TimedPolicy
from serving.ranking import arms, ranker
from training.contract.exploration import TruncatedNormal, UniformBox
from training.contract.policy import ConstantActor, Policy, PolicyHeader, constant_policy, load_policy
from training.contract.settings import Settings
from training.contract.settings.exploration import ExplorationSettings

SETTINGS = Settings()
FUSION = SETTINGS.fusion
K = len(FUSION.heads)
STATE = np.zeros(SETTINGS.state_spec.width, dtype=np.float32)
POLICY = constant_policy(SETTINGS.state_spec, FUSION, np.full(K, 0.5), "v1")
BROKEN = Policy(
    PolicyHeader("constant", "bad", SETTINGS.state_spec, FUSION), "", ConstantActor(np.full(K, np.nan))
)


def decide(arm, policy=POLICY, state=STATE, serving=SETTINGS.serving, stale=False):
    """The decision for a state that the store gave (None: it did not), of features that may be too old."""
    missing = "store" if state is None else "stale" if stale else None
    answer = None
    if policy is not None:
        answer = ranker.PolicyAnswer(policy.version) if missing else ranker.act(policy, state[None])[0]
    return ranker.decide(arm, answer, missing, FUSION, serving, np.random.default_rng(1).random)


def test_a_state_that_a_policy_fails_for_is_alone_in_that():
    class Partial:
        def __call__(self, states):
            return np.where(states[:, :1] > 0.0, np.nan, np.full((len(states), K), 0.25))

    states = np.zeros((3, len(STATE)), dtype=np.float32)
    states[1, 0] = 1.0
    answers = ranker.act(replace(POLICY, actor=Partial()), states)
    assert [one.failure for one in answers] == [None, "policy", None]
    assert all(np.array_equal(one.action, np.full(K, 0.25)) for one in (answers[0], answers[2]))


def test_champion_serves_the_policy_without_a_density():
    decision = decide("champion")
    assert (decision.policy_version, decision.fallback, decision.log_density) == ("v1", None, None)
    assert decision.exploration_unit is None
    assert np.array_equal(decision.action, np.full(K, 0.5, dtype=np.float32))
    assert np.array_equal(decision.action, decision.mean)


@pytest.mark.parametrize(
    ("policy", "state", "fallback"),
    [
        (None, STATE, "no_policy"),
        (None, None, "no_policy"),
        (POLICY, None, "store"),
        (BROKEN, STATE, "policy"),
    ],
)
@pytest.mark.parametrize("arm", ["champion", "challenger"])
def test_a_policy_falls_back_to_static_and_says_why(policy, state, fallback, arm):
    decision = decide(arm, policy, state)
    assert (decision.policy_version, decision.fallback) == ("static", fallback)
    assert np.array_equal(decision.action, FUSION.static_action)


def test_static_arm_never_asks_the_policy():
    decision = decide("static", BROKEN)
    assert (decision.policy_version, decision.fallback) == ("static", None)
    assert np.array_equal(decision.action, FUSION.static_action)


def test_random_arm_is_centred_on_nothing_learnt():
    decision = decide("random")
    assert (decision.policy_version, decision.fallback) == ("static", None)
    assert np.array_equal(decision.mean, np.zeros(K))
    expected = TruncatedNormal(np.zeros(K), SETTINGS.serving.random_std).log_density(decision.action)
    assert decision.log_density == expected


def test_noise_arm_is_centred_on_the_policy():
    decision = decide("noise")
    assert decision.policy_version == "v1"
    assert np.array_equal(decision.mean, np.full(K, 0.5, dtype=np.float32))
    expected = TruncatedNormal(decision.mean, SETTINGS.serving.noise_std).log_density(decision.action)
    assert decision.log_density == expected


def test_box_arm_is_centred_on_the_policy():
    decision = decide("box")
    assert decision.policy_version == "v1"
    assert np.array_equal(decision.mean, np.full(K, 0.5, dtype=np.float32))
    assert (np.abs(decision.action - 0.5) <= 0.15 + 1e-6).all() and (decision.action != 0.5).all()
    expected = UniformBox(decision.mean, SETTINGS.serving.box_width).log_density(decision.action)
    assert decision.log_density == expected == pytest.approx(-K * np.log(0.3))


@pytest.mark.parametrize("arm", ["noise", "box"])
@pytest.mark.parametrize(
    ("policy", "state", "fallback"), [(None, STATE, None), (POLICY, None, "store"), (BROKEN, STATE, "policy")]
)
def test_noise_without_a_policy_explores_around_static(policy, state, fallback, arm):
    decision = decide(arm, policy, state)
    assert (decision.policy_version, decision.fallback) == ("static", fallback)
    assert np.array_equal(decision.mean, FUSION.static_action)
    assert np.isfinite(decision.log_density)


@pytest.mark.parametrize("arm", arms.ARMS)
def test_stale_features_are_not_acted_by_and_are_named(arm):
    decision = decide(arm, stale=True)
    assert (decision.policy_version, decision.fallback) == ("static", "stale")
    if arm not in arms.EXPLORING:
        assert np.array_equal(decision.action, FUSION.static_action)


@pytest.mark.parametrize("arm", ["champion", "challenger", "noise", "box"])
def test_a_policy_over_its_budget_gives_way_to_static_weights(arm):
    decision = decide(arm, TimedPolicy(POLICY, 0.0))
    assert (decision.policy_version, decision.fallback) == ("static", "policy_slow")
    assert np.array_equal(decision.mean, FUSION.static_action)


@pytest.mark.parametrize("arm", ["static", "random"])
def test_a_missing_state_is_named_for_arms_that_do_not_need_one(arm):
    assert decide(arm, POLICY, None).fallback == "store"


@pytest.mark.parametrize("unit", ["request", "session"])
def test_a_drawn_action_says_what_it_was_drawn_for(unit):
    serving = SETTINGS.serving.model_copy(update={"exploration": ExplorationSettings(unit=unit)})
    assert {decide(arm, serving=serving).exploration_unit for arm in arms.EXPLORING} == {unit}
    assert {decide(arm, serving=serving).exploration_unit for arm in ("static", "champion")} == {None}


def test_densities_follow_the_settings():
    wide = SETTINGS.serving.model_copy(update={"noise_std": 0.9})
    drawn = decide("noise", serving=wide)
    assert drawn.log_density == TruncatedNormal(drawn.mean, 0.9).log_density(drawn.action)


@pytest.fixture(scope="module")
def ranking(tmp_path_factory, cells):
    """An xMTF policy: it ranks by itself."""
    settings = Settings(data=tmp_path_factory.mktemp("cells"))
    return load_policy(settings.data / cells(settings, "cells-v1").policy)


PREDICTIONS = np.random.default_rng(0).random((30, K))


def scored(arm, policy, state=STATE):
    decision = decide(arm, policy, state)
    served, weights, scores = ranker.score(decision, policy, state, PREDICTIONS, FUSION)
    np.testing.assert_array_equal(weights, FUSION.to_weights(served.action))
    return decision, served, scores


@pytest.mark.parametrize("arm", ["champion", "challenger"])
def test_a_policy_that_ranks_by_itself_does_where_it_serves_as_it_is(arm, ranking):
    before, decision, scores = scored(arm, ranking)
    assert decision is before and decision.policy_version == "cells-v1"
    assert np.array_equal(decision.action, ranking.act(STATE[None])[0])
    np.testing.assert_array_equal(scores, ranking.actor.scores(PREDICTIONS, STATE))
    formula = FUSION.score(PREDICTIONS, FUSION.to_weights(decision.action))
    assert not np.array_equal(np.argsort(scores), np.argsort(formula))


@pytest.mark.parametrize("arm", ["static", "random", "noise", "box"])
def test_other_arms_rank_by_the_formula(arm, ranking):
    before, decision, scores = scored(arm, ranking)
    assert decision is before
    formula = FUSION.score(PREDICTIONS, FUSION.to_weights(decision.action))
    np.testing.assert_array_equal(scores, formula)


def test_without_a_state_static_weights_rank(ranking):
    _, decision, scores = scored("champion", ranking, None)
    assert (decision.policy_version, decision.fallback) == ("static", "store")
    static = FUSION.score(PREDICTIONS, FUSION.to_weights(FUSION.static_action))
    np.testing.assert_array_equal(scores, static)


def test_a_policy_that_cannot_rank_falls_back_to_static_and_says_why(ranking):
    tensors = ranking.actor.tensors | {"x_scale": np.zeros(K)}
    broken = replace(ranking, actor=replace(ranking.actor, tensors=tensors))
    with np.errstate(all="ignore"):
        _, decision, scores = scored("champion", broken)
    assert (decision.policy_version, decision.fallback) == ("static", "policy")
    assert np.array_equal(decision.action, FUSION.static_action)
    static = FUSION.score(PREDICTIONS, FUSION.to_weights(FUSION.static_action))
    np.testing.assert_array_equal(scores, static)
