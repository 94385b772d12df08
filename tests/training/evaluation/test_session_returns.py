"""The session estimator: its intervals, and that it says when it does not explain an arm."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.session_log import FUSION, SPEC, Sessions, constant
from training.contract.errors import DataError
from training.contract.policy import Policy, PolicyHeader
from training.contract.settings import Settings
from training.evaluation import session_returns
from training.evaluation.session_returns import SessionReturns
from training.policies import return_regression
from training.trajectories import Transitions

OTHERS = {"low": (-0.8, -0.8), "high": (0.9, 0.4)}


@pytest.fixture(scope="module")
def settings(make_toy, tmp_path_factory) -> Settings:
    found: Settings = make_toy(tmp_path_factory.mktemp("session_returns")).settings
    assert found.fusion == FUSION
    return found


def judged(data: Transitions, settings: Settings, seed: int = 0, **more: Policy) -> SessionReturns:
    policies = {name: constant(action, name) for name, action in OTHERS.items()}
    policies["static"] = constant(FUSION.static_action, "static")
    return session_returns.estimate(data, data, policies | more, settings, seed)


def test_it_tells_what_constants_return_and_how_surely(settings: Settings) -> None:
    sessions = Sessions(static=0.3)
    held = 0
    for seed in range(8):
        found = judged(sessions.log(1_500, seed), settings)
        static = sessions.true_return(FUSION.static_action)[0]
        for name, action in OTHERS.items():
            truth = sessions.true_return(np.array([action]))[0] - static
            interval = found.estimates.difference(name, "static")
            assert abs(interval["value"] - truth) < 0.3 * abs(truth) + 0.3
            held += interval["lower"] <= truth <= interval["upper"]
        assert found.estimates.values["static"] == pytest.approx(static, abs=0.5)
    assert held >= 13  # of 16, at 95 %


def test_a_log_that_it_explains_is_trusted(settings: Settings) -> None:
    found = [judged(Sessions(static=0.3).log(1_500, seed), settings) for seed in range(4)]
    assert sum(one.trusted for one in found) >= 3
    for one in found:
        assert set(one.arms) == {"random", "static"}
        assert sum(arm["sessions"] for arm in one.arms.values()) == 1_500
        for arm in one.arms.values():
            assert abs(arm["observed"] - arm["predicted"]) < 5.0 * arm["error"]


def test_an_arm_that_it_does_not_explain_is_told_and_widens_every_interval(settings: Settings) -> None:
    data = Sessions(static=0.3).log(1_500)
    before = judged(data, settings)
    # a third arm with the random arm's actions, whose sessions return 3 more for a reason of their own
    lucky = (data.sessions % 3 == 0) & (data.arms == 0)
    arms = torch.where(lucky, 2, data.arms)
    data = replace(
        data, arms=arms, arm_names=("random", "static", "lucky"), rewards=data.rewards + lucky.float()
    )
    found = judged(data, settings)
    assert not found.trusted and not found.arms["lucky"]["explained"]
    assert found.arms["lucky"]["observed"] - found.arms["lucky"]["predicted"] > 1.5
    assert found.misfit > 0.5 > before.misfit
    widths = [one.estimates.difference("low", "static") for one in (before, found)]
    assert widths[1]["upper"] - widths[1]["lower"] > widths[0]["upper"] - widths[0]["lower"]


def test_an_arm_of_few_sessions_tests_nothing(settings: Settings) -> None:
    found = judged(Sessions(static=0.03).log(1_500), settings)
    assert set(found.arms) == {"random"}


def test_what_the_regression_proposes_is_judged_by_users_that_it_has_not_seen(settings: Settings) -> None:
    """On a log without an effect, what was found to be best in it gains nothing by the other half."""
    gains, promised = [], []
    how = settings.learner.return_regression.model_copy(update={"caution": 0.0})
    eager = settings.model_copy(
        update={"learner": settings.learner.model_copy(update={"return_regression": how})}
    )
    for seed in range(6):
        data = Sessions(effect=0.1, best=(0.0, 0.0), noise=6.0).log(800, seed)
        proposal = return_regression.propose(FUSION, how, data, seed)["constant"]
        policy = constant(proposal.tensors["action"], "constant")
        found = judged(data, eager, seed, constant=policy)
        gains.append(found.estimates.difference("constant", "static")["value"])
        promised.append(proposal.summary["gain_over_static"]["value"])
    assert np.mean(gains) < 0.5 * np.mean(promised)


def test_a_champion_made_of_the_same_log_is_flattered_no_more_than_the_pools_own(settings: Settings) -> None:
    data = Sessions(effect=0.1, best=(0.0, 0.0), noise=6.0).log(800)
    action = return_regression.propose(FUSION, settings.learner.return_regression, data, 0)["constant"]
    own = constant(action.tensors["action"], "own")

    def champion(rows: int) -> Policy:
        lineage = {"algorithm": "constant", "partitions": {"2026-01-07": {"rows": rows, "sha256": ""}}}
        return Policy(replace(own.header, version="champion", lineage=lineage), "", own.actor)

    def above(rows: int) -> float:
        found = judged(data, settings, constant=own, champion=champion(rows)).estimates
        return found.values["champion"] - found.values["constant"]

    assert above(len(data)) == pytest.approx(0.0, abs=1e-9)
    assert above(len(data) // 2) == pytest.approx(0.5 * above(0))


def test_a_policy_of_the_state_is_told_from_a_constant(settings: Settings) -> None:
    sessions = Sessions(interaction=3.0)
    data = sessions.log(2_500)

    def by_taste(states: np.ndarray) -> np.ndarray:
        return np.where(states[:, :1] > 0.0, [[0.9, -0.6]], [[-0.5, -0.6]]).astype(np.float32)

    policy = Policy(PolicyHeader("constant", "by taste", SPEC, FUSION), "", by_taste)
    centre = constant(sessions.best, "best")
    found = judged(data, settings, policy=policy, centre=centre)
    states = data.states[data.steps == 0].numpy()
    truth = sessions.true_return(by_taste(states), states) - sessions.true_return(
        np.tile(sessions.best, (len(states), 1)), states
    )
    interval = found.estimates.difference("policy", "centre")
    assert interval["lower"] <= truth.mean() <= interval["upper"] and interval["lower"] > 0.0


def test_fewer_than_a_hundred_sessions_are_refused(settings: Settings) -> None:
    with pytest.raises(DataError, match="too few"):
        judged(Sessions().log(60), settings)
