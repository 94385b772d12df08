"""Proposals of the regression: what was planted is found, and nothing where there is nothing."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.session_log import FUSION, SPEC, Sessions, in_parts
from training.contract.errors import DataError
from training.contract.policy import MenuActor, PolicyHeader, load_policy, save_policy
from training.contract.settings import ReturnRegressionSettings
from training.policies.return_regression import CONSTANT, MENU, Proposal, leaning_name, propose

HOW = ReturnRegressionSettings()
STATIC = FUSION.static_action


def proposals(sessions: Sessions, count: int = 2_500, seed: int = 0) -> dict[str, Proposal]:
    return propose(FUSION, HOW, sessions.log(count, seed), seed)


def true_return(sessions: Sessions, proposal: Proposal) -> float:
    """Of the policy, held over a session by the users as they are."""
    states = np.random.default_rng(9).normal(size=(2_000, 2)).astype(np.float32)
    return float(sessions.true_return(proposal.actor()(states), states).mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_best_constant_is_found_within_the_noise(seed: int) -> None:
    sessions = Sessions()
    best, static = (sessions.true_return(np.array([a]))[0] for a in (sessions.best, STATIC))
    found = proposals(sessions, seed=seed)[CONSTANT]
    assert true_return(sessions, found) > static + 0.8 * (best - static)
    promised = found.summary["gain_over_static"]
    assert abs(promised["value"] - (true_return(sessions, found) - static)) < 4.0 * promised["deviation"]
    weights = FUSION.to_weights(found.tensors["action"])
    np.testing.assert_allclose([found.summary["weights"][head] for head in FUSION.names], weights)
    assert np.abs(found.tensors["action"]).max() <= 1.0 - HOW.margin + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_weights_that_are_the_best_already_are_hardly_left(seed: int) -> None:
    sessions = Sessions(best=tuple(STATIC.tolist()))
    found = proposals(sessions, seed=seed)[CONSTANT]
    assert sessions.true_return(STATIC)[0] - true_return(sessions, found) < 0.1  # the worst lose 14
    assert found.summary["gain_over_static"]["value"] < 0.25


@pytest.mark.parametrize("seed", range(4))
def test_a_log_without_an_effect_promises_no_gain(seed: int) -> None:
    found = proposals(Sessions(effect=0.0), seed=seed)
    assert 0.0 <= found[CONSTANT].summary["gain_over_static"]["value"] < 0.3  # a session's deviation is 2
    assert 0.0 <= found[MENU].summary["gain_over_the_constant"] < 0.3


def test_who_wants_what_is_found_and_brings_what_it_promises() -> None:
    sessions = Sessions(interaction=3.0)
    found = proposals(sessions)
    constant, menu = (true_return(sessions, found[name]) for name in (CONSTANT, MENU))
    summary = found[MENU].summary
    assert summary["menu"] > 1 and 0.0 < summary["share_of_the_constant"] < 0.8
    assert menu > constant + 0.5
    assert menu - constant == pytest.approx(summary["gain_over_the_constant"], rel=0.3)
    # more of s_0 wants more of the first weight
    states = np.array([[-1.5, 0.0], [1.5, 0.0]], dtype=np.float32)
    low, high = found[MENU].actor()(states)
    assert low[0] < found[CONSTANT].tensors["action"][0] < high[0]


@pytest.mark.parametrize("seed", range(3))
def test_where_all_want_the_same_nearly_all_get_the_constant(seed: int) -> None:
    sessions = Sessions()
    found = proposals(sessions, seed=seed)
    assert true_return(sessions, found[MENU]) > true_return(sessions, found[CONSTANT]) - 0.05
    assert found[MENU].summary["gain_over_the_constant"] < 0.05


def test_a_log_of_losses_has_no_menu_of_one_vector_many_times() -> None:
    data = Sessions().log(1_500)
    data.rewards[:] -= 20.0
    menu = propose(FUSION, HOW, data, 0)[MENU]
    assert len(np.unique(menu.tensors["actions"], axis=0)) == menu.summary["menu"]


def test_the_exported_menu_is_the_menu(tmp_path: Path) -> None:
    proposal = proposals(Sessions(interaction=3.0), 1_500)[MENU]
    header = PolicyHeader(proposal.kind, "v", SPEC, FUSION, proposal.options)
    path = tmp_path / "policy.safetensors"
    policy = load_policy(path, save_policy(path, header, proposal.tensors))
    assert isinstance(policy.actor, MenuActor)
    states = np.random.default_rng(1).normal(size=(500, 2)).astype(np.float32)
    t = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in proposal.tensors.items()}
    worth = t["bias"] + (states - t["mean"]) @ t["weights"].T
    clear = np.diff(np.sort(worth, axis=1)[:, -2:], axis=1)[:, 0] > 1e-4
    assert clear.sum() > 400
    chosen = t["actions"][worth.argmax(axis=1)]
    np.testing.assert_allclose(policy.act(states)[clear], chosen[clear], atol=1e-6)
    np.testing.assert_array_equal(policy.act(states), proposal.actor()(states))


def test_a_log_gives_its_proposals_again() -> None:
    one, two = (proposals(Sessions(interaction=1.0), 600) for _ in range(2))
    for name in (CONSTANT, MENU):
        assert one[name].summary == two[name].summary
        for key, tensor in one[name].tensors.items():
            np.testing.assert_array_equal(tensor, two[name].tensors[key])


def test_a_leaning_buys_the_one_part_with_the_other() -> None:
    time, interaction = Sessions(best=(0.5, -0.5)), Sessions(best=(-0.7, 0.8))
    data, factors = in_parts(time, interaction, 3_000), (0.1, 0.5, 1.0, 2.0, 10.0)
    found = propose(FUSION, HOW, data, 0, factors)
    menus = [found[leaning_name(factor)] for factor in factors]
    times, interactions = ([true_return(part, menu) for menu in menus] for part in (time, interaction))
    assert (np.diff(times) < 0.05).all() and times[0] - times[-1] > 1.0
    assert (np.diff(interactions) > -0.05).all() and interactions[-1] - interactions[0] > 1.0
    # each is about as good for its own reward as any weights are
    for factor, menu in zip(factors, menus, strict=True):
        grid = np.stack(np.meshgrid(*[np.linspace(-0.98, 0.98, 50)] * 2), axis=-1).reshape(-1, 2)
        values = time.true_return(grid) + factor * interaction.true_return(grid)
        own = true_return(time, menu) + factor * true_return(interaction, menu)
        assert own > np.quantile(values, 0.97)


def test_the_sweep_leaves_the_rewards_own_proposals_as_they_are() -> None:
    data = in_parts(Sessions(interaction=2.0), Sessions(best=(-0.7, 0.8)), 800)
    alone, swept = propose(FUSION, HOW, data, 3), propose(FUSION, HOW, data, 3, HOW.leanings)
    assert set(swept) == {CONSTANT, *map(leaning_name, HOW.leanings)} and leaning_name(1.0) == MENU
    for name, one in alone.items():
        assert one.summary == swept[name].summary
        for key, tensor in one.tensors.items():
            np.testing.assert_array_equal(tensor, swept[name].tensors[key])


def test_too_few_sessions_are_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        proposals(Sessions(), 30)
