"""LSTD-Q where the value is known: a chain of positions, whose rewards are linear in what the basis sees."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.session_log import FUSION, Sessions
from training.contract.settings import EvaluationSettings
from training.evaluation import lstd_q
from training.evaluation.acting import Actions
from training.returns import Features
from training.trajectories import Transitions

LENGTH, STOP = 4, 0.3
LEVELS, SLOPES = np.array([1.0, -0.5, 2.0, 0.25]), np.array([1.0, -2.0])  # a reward at each position, of x
FEATURES = Features(FUSION, LENGTH)
EXACT = {"lstd_q_penalty": 1e-6}


def rewards_of(place: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return LEVELS[place] + FEATURES.of_actions(actions)[:, :2] @ SLOPES


def true_value(actions: np.ndarray, gamma: float, stop: float = STOP) -> float:
    """Of a policy that does ``actions`` [LENGTH, 2] at each position."""
    going_on = (gamma * (1.0 - stop)) ** np.arange(LENGTH)
    return float(going_on @ rewards_of(np.arange(LENGTH), actions))


def chain(sessions: int, noise: float = 0.0, seed: int = 0, stop: float = STOP) -> Transitions:
    """Sessions from position 0 to the last, each of which may end before. Each request draws its action."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(stop, sessions), LENGTH) if stop else np.full(sessions, LENGTH)
    session = np.repeat(np.arange(sessions), lengths)
    place = np.concatenate([np.arange(n) for n in lengths])
    actions = rng.uniform(-1.0, 1.0, (len(place), 2))
    reward = rewards_of(place, actions) + rng.normal(0.0, noise, len(place))
    one_hot = np.eye(LENGTH)
    done = place == lengths[session] - 1
    blank = Sessions().log(1).take(torch.zeros(len(place), dtype=torch.int64))
    return replace(
        blank,
        states=torch.from_numpy(one_hot[place]).float(),
        actions=torch.from_numpy(actions).float(),
        rewards=torch.from_numpy(reward).float(),
        next_states=torch.from_numpy(one_hot[np.minimum(place + 1, LENGTH - 1)] * ~done[:, None]).float(),
        next_actions=torch.zeros(len(place), 2),
        dones=torch.from_numpy(done).float(),
        sessions=torch.from_numpy(session),
        users=torch.from_numpy(session),
        steps=torch.from_numpy(place),
        by_session=torch.zeros(len(place), dtype=torch.bool),
    )


def acts(data: Transitions, actions: np.ndarray) -> Actions:
    """A policy by position; where the session has ended the answer must not matter."""
    own = torch.from_numpy(actions).float()
    last = torch.where(data.dones > 0, 0, torch.clamp(data.steps + 1, max=LENGTH - 1))
    return Actions(own[data.steps], own[last])


def estimated(data: Transitions, policies: dict[str, np.ndarray], **how) -> lstd_q.Estimates:
    actions = {name: acts(data, own) for name, own in policies.items()}
    return lstd_q.estimate(data, actions, FUSION, EvaluationSettings(**how), seed=3)


CHAIN, WHOLE = chain(400), chain(400, stop=0.0)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=LENGTH, max_size=LENGTH),
    st.sampled_from([1.0, 0.9, 0.3]),
)
def test_the_value_is_exact_where_nothing_is_chance_and_it_is_linear_in_the_basis(actions, gamma) -> None:
    own = np.array(actions, dtype=np.float32)
    found = estimated(WHOLE, {"own": own}, gamma=gamma, **EXACT)
    assert found.values["own"] == pytest.approx(true_value(own, gamma, stop=0.0), abs=2e-3)
    np.testing.assert_allclose(found.replicates["own"], found.values["own"], atol=5e-3)
    # who ends is chance, which 400 sessions' actions cannot be told from altogether: as the resamples say
    found = estimated(CHAIN, {"own": own}, gamma=gamma, **EXACT)
    error = abs(found.values["own"] - true_value(own, gamma))
    assert error < 4.0 * found.replicates["own"].std() + 1e-3


def test_intervals_of_values_and_of_differences_hold_the_truth() -> None:
    one, two = np.tile([0.5, -0.5], (LENGTH, 1)), np.tile([-0.3, 0.4], (LENGTH, 1))
    truth = {"one": true_value(one, 1.0), "two": true_value(two, 1.0)}
    held = 0
    for seed in range(10):
        found = estimated(chain(400, 1.0, seed), {"one": one, "two": two}, **EXACT)
        intervals = [found.interval(name) for name in truth]
        held += sum(i["lower"] <= v <= i["upper"] for i, v in zip(intervals, truth.values(), strict=True))
        difference = found.difference("one", "two")
        held += difference["lower"] <= truth["one"] - truth["two"] <= difference["upper"]
        # paired by resample: of two that do nearly the same, what is not known is mostly in both
        near = estimated(chain(400, 1.0, seed), {"one": one, "near": one + 0.02}, **EXACT)
        apart, alone = near.difference("one", "near"), near.interval("one")
        assert apart["upper"] - apart["lower"] < 0.3 * (alone["upper"] - alone["lower"])
    assert held >= 25  # of 30, at 95 %


def test_the_penalty_draws_policies_together_and_leaves_the_level() -> None:
    one, two = np.tile([0.8, -0.9], (LENGTH, 1)), np.tile([-0.9, 0.8], (LENGTH, 1))
    gaps, levels = [], []
    for penalty in (1e-6, 1e3, 1e7):
        found = estimated(CHAIN, {"one": one, "two": two}, lstd_q_penalty=penalty)
        gaps.append(abs(found.values["one"] - found.values["two"]))
        levels.append(found.values["one"])
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.05
    logged = np.bincount(CHAIN.sessions.numpy(), CHAIN.rewards.numpy()).mean()
    assert levels[2] == pytest.approx(logged, abs=0.1)  # nothing is told apart: the log's own return


def test_it_does_not_matter_in_which_order_the_rows_are() -> None:
    own = {"own": np.tile([0.2, 0.1], (LENGTH, 1))}
    data = chain(60, 1.0)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(data)))
    one, two = (estimated(d, own) for d in (data, data.take(order)))
    assert one.values["own"] == pytest.approx(two.values["own"], rel=1e-6)
    np.testing.assert_allclose(one.replicates["own"], two.replicates["own"], rtol=1e-5)
