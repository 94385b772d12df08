"""What a leaning brings in both parts of the reward: honest about users that it has not seen."""

import numpy as np
import pytest

from tests.training.session_log import FUSION, SPEC, Sessions, constant, in_parts
from training.contract.policy import Policy, PolicyHeader
from training.contract.settings import Settings
from training.evaluation import pareto, session_returns
from training.evaluation.session_returns import PARTS, SessionReturns
from training.policies.return_regression import MENU, leaning_name, propose
from training.trajectories import Transitions

TIME, INTERACTION = Sessions(best=(0.5, -0.5), static=0.3), Sessions(best=(-0.7, 0.8), static=0.3)
FACTORS = (0.1, 10.0)


@pytest.fixture(scope="module")
def settings(make_toy, tmp_path_factory) -> Settings:
    found: Settings = make_toy(tmp_path_factory.mktemp("pareto")).settings
    return found


def night(
    data: Transitions, settings: Settings, seed: int
) -> tuple[SessionReturns, dict[str, Policy], dict[float, Policy]]:
    """The judge's word on a night's menus, on static weights and on a champion."""
    how = settings.learner.return_regression
    made = {
        name: Policy(PolicyHeader(one.kind, name, SPEC, FUSION), "", one.actor())
        for name, one in propose(FUSION, how, data, seed, FACTORS).items()
    }
    leanings = {factor: made[leaning_name(factor)] for factor in FACTORS}
    policies = {
        MENU: made[MENU],
        "static": constant(FUSION.static_action, "static"),
        "champion": constant((0.1, 0.1), "champion of yesterday"),
    }
    found = session_returns.estimate(data, data, policies, settings, seed, leanings)
    return found, policies, leanings


def test_points_hold_what_their_policies_truly_bring_and_trade_one_part_for_the_other(settings) -> None:
    held = []
    for seed in range(4):
        data = in_parts(TIME, INTERACTION, 2_000, seed)
        found, policies, leanings = night(data, settings, seed)
        record = pareto.sweep(found.parts, policies, leanings)
        assert [point["factor"] for point in record["points"]] == [0.1, 1.0, 10.0]
        states = data.states[data.steps == 0].numpy()
        for point in record["points"]:
            policy = leanings.get(point["factor"], policies[MENU])
            assert point["version"] == policy.version
            for part, world in zip(PARTS, (TIME, INTERACTION), strict=True):
                for rival in ("static", "champion"):
                    interval = point["over"][policies[rival].version][part]
                    truth = (
                        world.true_return(policy.act(states), states).mean()
                        - world.true_return(policies[rival].act(states[:1]))[0]
                    )
                    held.append(interval["lower"] <= truth <= interval["upper"])
        low, _, high = (point["over"]["static"] for point in record["points"])
        assert low["time"]["value"] > high["time"]["value"] + 1.0
        assert high["interaction"]["value"] > low["interaction"]["value"] + 1.0
        # and surely so: the difference of two points is far better known than either
        between = record["points"][2]["over"][leanings[0.1].version]
        assert between["interaction"]["lower"] > 0.0 > between["time"]["upper"]
        assert record["static"]["time"] == pytest.approx(TIME.true_return(FUSION.static_action)[0], abs=0.5)
        assert record["champion"]["version"] == "champion of yesterday"
    assert np.mean(held) > 0.9


def test_the_estimate_of_the_whole_is_what_it_is_without_a_sweep_and_its_parts_add_up(settings) -> None:
    data = in_parts(TIME, INTERACTION, 1_200)
    found, policies, _ = night(data, settings, 0)
    alone = session_returns.estimate(data, data, policies, settings, 0)
    assert alone.parts == {} and set(found.parts) == set(PARTS)
    assert found.estimates.values == alone.estimates.values
    for name in policies:
        np.testing.assert_array_equal(found.estimates.replicates[name], alone.estimates.replicates[name])
        of_parts = sum(found.parts[part].estimates.values[name] for part in PARTS)
        assert of_parts == pytest.approx(found.estimates.values[name], abs=0.3)


def test_a_leaning_is_judged_by_users_that_it_has_not_seen(settings) -> None:
    """On a log without an effect, what was found to be best in it gains nothing by the other half."""
    nothing = Sessions(effect=0.1, best=(0.0, 0.0), noise=6.0, static=0.3)
    how = settings.learner.return_regression.model_copy(update={"caution": 0.0, "menu_caution": 0.0})
    learner = settings.learner.model_copy(update={"return_regression": how})
    eager = settings.model_copy(update={"learner": learner})
    gains = []
    for seed in range(6):
        found, _, _ = night(in_parts(nothing, nothing, 800, seed), eager, seed)
        name = leaning_name(10.0)
        gains.append(found.parts["interaction"].estimates.difference(name, "static"))
    assert np.mean([gain["value"] for gain in gains]) < 0.3
    assert sum(gain["lower"] > 0.0 for gain in gains) <= 1
