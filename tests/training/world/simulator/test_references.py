"""The searches find what they should; slow, because they play thousands of sessions."""

import numpy as np
import pytest

from tests.training.world.simulator.conftest import DAY
from training.contract.policy import constant_policy
from training.world.simulator.references import Bench, best_constants, compare_with_static, fit_oracle
from training.world.simulator.world import World


def test_common_random_numbers_make_a_policy_equal_to_itself(calm: World) -> None:
    bench = Bench(calm, DAY, sessions=200)
    static = calm.settings.fusion.static_action
    one = bench.evaluate_constant(static)
    two = bench.evaluate(lambda states, requests: np.repeat(static[None], len(states), axis=0))
    assert one.difference(two) == (0.0, 0.0, 0.0)
    summary = one.summary()
    assert summary["session_return_ci"][0] < summary["session_return_mean"] < summary["session_return_ci"][1]
    assert set(summary["by_kind"]) == {"skimmer", "deep", "social", "sensitive"}


def test_a_policy_is_compared_with_static_weights_on_the_same_sessions(calm: World) -> None:
    settings = calm.settings
    bench = Bench(calm, DAY, sessions=200)

    def compare(action: np.ndarray) -> dict:
        policy = constant_policy(settings.state_spec, settings.fusion, action, "x")
        return compare_with_static(bench, policy)

    same = compare(settings.fusion.static_action)
    assert same["policy"] == same["static"] and same["difference"] == dict.fromkeys(
        ("mean", "lower", "upper"), 0.0
    )
    other = compare(-settings.fusion.static_action)
    assert other["static"] == same["static"]
    assert other["difference"]["mean"] == pytest.approx(other["policy"]["mean"] - other["static"]["mean"])
    assert other["difference"]["lower"] < other["difference"]["mean"] < other["difference"]["upper"]


@pytest.mark.slow
def test_searches_beat_static_on_other_sessions(calm: World) -> None:
    search, judge = Bench(calm, DAY, sessions=300, seed=1), Bench(calm, DAY, sessions=1_000, seed=2)
    static = judge.evaluate_constant(calm.settings.fusion.static_action)
    base = static.session_return.mean()
    constant = judge.evaluate_constant(best_constants(search, generations=6, population=10))
    kinds = judge.evaluate_constant(best_constants(search, per_kind=True, generations=8, population=10))
    fitted = fit_oracle(search, generations=3, population=6)
    oracle = judge.evaluate_ranker(type(fitted)(judge, fitted.satisfaction_price, fitted.second_price))
    assert constant.difference(static)[1] > 0.05 * base
    assert kinds.difference(constant)[1] > 0.0
    assert oracle.difference(kinds)[1] > 0.0
