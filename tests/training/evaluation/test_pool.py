"""The best of a pool is chosen by bounds that hold for all of it at once."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training.evaluation.intervals import Estimates
from training.evaluation.pool import choose


def estimates(
    values: dict[str, float], deviations: dict[str, float], replicates: int = 400, seed: int = 0
) -> Estimates:
    """Normal replicates, each policy's own; static weights are known."""
    rng = np.random.default_rng(seed)
    names = {"static": 0.0, **values}
    return Estimates(
        names, {n: v + deviations.get(n, 0.0) * rng.normal(size=replicates) for n, v in names.items()}, 0.95
    )


@pytest.mark.parametrize("replicates", [400, 5])
def test_a_pool_of_equals_is_above_static_weights_by_luck_no_more_than_it_says(replicates: int) -> None:
    rng, members, nights = np.random.default_rng(1), 12, 300
    wrong = pointwise = 0
    for night in range(nights):
        values = {f"p{i}": v for i, v in enumerate(rng.normal(size=members))}  # the truth is 0
        found = estimates(values, dict.fromkeys(values, 1.0), replicates, night)
        wrong += any(one["lower"] > 0.0 for one in choose(found, values)["pool"].values())
        pointwise += any(found.difference(name, "static")["lower"] > 0.0 for name in values)
    assert wrong / nights <= 0.05 + 2.0 * np.sqrt(0.05 * 0.95 / nights)
    assert pointwise > 2 * wrong  # as the luckiest of many would be without


def test_the_surer_of_two_goes_on() -> None:
    found = choose(estimates({"bold": 2.0, "sure": 1.5}, {"bold": 2.0, "sure": 0.1}), ["bold", "sure"])
    assert found["chosen"] == "sure"
    assert found["pool"]["bold"]["lower"] < 0.0 < found["pool"]["sure"]["lower"]


def test_a_bound_of_many_lies_below_that_of_one() -> None:
    values = {f"p{i}": 1.0 for i in range(8)}
    found = estimates(values, dict.fromkeys(values, 0.5))
    alone, together = (choose(found, names)["pool"]["p0"]["lower"] for names in (["p0"], list(values)))
    assert together < alone < 1.0


def test_what_is_not_shown_to_be_better_than_the_constant_makes_way_for_it() -> None:
    pool = ["return_regression", "batchrl_mtf", "constant"]
    deviations = dict.fromkeys(pool, 0.2)
    near = estimates({"constant": 1.0, "return_regression": 1.2, "batchrl_mtf": 1.1}, deviations)
    far = estimates({"constant": 1.0, "return_regression": 2.5, "batchrl_mtf": 1.1}, deviations)
    assert choose(near, pool)["chosen"] == "constant"
    assert choose(far, pool)["chosen"] == "return_regression"
    assert choose(near, ["return_regression"])["chosen"] == "return_regression"


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(-3, 3), min_size=1),
    st.floats(-20, 20),
    st.randoms(use_true_random=False),
)
def test_neither_the_level_nor_the_order_of_the_pool_matters(values, level, random) -> None:
    assume(len(set(values.values())) == len(values))
    found = estimates(values, dict.fromkeys(values, 0.3))
    moved = Estimates(
        {n: v + level for n, v in found.values.items()},
        {n: r + level for n, r in found.replicates.items()},
        found.confidence,
    )
    names = list(values)
    random.shuffle(names)
    one, two = choose(found, list(values)), choose(moved, names)
    assert one["chosen"] == two["chosen"]
    for name, interval in one["pool"].items():
        assert interval["lower"] <= interval["value"] <= interval["upper"]
        assert two["pool"][name] == pytest.approx(interval, abs=1e-9)


def test_one_that_acts_as_static_weights_do_differs_by_nothing() -> None:
    found = choose(estimates({"same": 0.0}, {}), ["same"])
    assert found == {"chosen": "same", "pool": {"same": {"lower": 0.0, "value": 0.0, "upper": 0.0}}}
