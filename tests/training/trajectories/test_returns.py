"""What sessions returned: whole ones only, by arm and by policy, with whose they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.conftest import DAY
from training import trajectories
from training.trajectories import known_returns, whole_sessions

GAMMA = 0.95


def fixed(states, rng):
    return np.full((len(states), 2), 0.5, dtype=np.float32)


@pytest.fixture
def test_split(toy):
    world = toy(learner={"mixed_exploration": False}, evaluation={"test_share": 0.5})
    world.log(40, {"static": fixed, "champion": fixed, "random": fixed})
    return trajectories.load(world.settings, DAY).test


def test_returns_count_whole_sessions_only(test_split):
    returns = whole_sessions(test_split, GAMMA).returns
    own = test_split.sessions == int(test_split.sessions[0])
    expected = sum(GAMMA**t * float(r) for t, r in enumerate(test_split.rewards[own]))
    assert returns[0] == pytest.approx(expected, rel=1e-5)
    assert len(returns) == len(torch.unique(test_split.sessions))
    without_first = test_split.take(torch.arange(1, len(test_split)))
    without_last = test_split.take(torch.nonzero(~(own & (test_split.dones == 1))).flatten())
    for less in (without_first, without_last):
        assert len(whole_sessions(less, GAMMA).returns) == len(returns) - 1


def test_every_arms_returns_are_known_with_their_users(test_split):
    known = known_returns(test_split, 1.0)
    assert known.keys() == {"static", "champion", "random"}
    for arm, (returns, users) in known.items():
        own = test_split.arms == test_split.arm_names.index(arm)
        assert returns.sum() == pytest.approx(float(test_split.rewards[own].double().sum()))
        assert sorted(users) == sorted(test_split.users[own & (test_split.steps == 0)].tolist())
    everything = whole_sessions(test_split, 1.0)
    assert sum(len(returns) for returns, _ in known.values()) == len(everything.returns)


def test_a_session_of_two_arms_is_known_of_neither(test_split):
    long = int(test_split.sessions[test_split.steps == 1][0])
    row = int(torch.nonzero((test_split.sessions == long) & (test_split.steps == 1))[0])
    arms = test_split.arms.clone()
    arms[row] = (arms[row] + 1) % 3
    known, before = known_returns(replace(test_split, arms=arms), 1.0), known_returns(test_split, 1.0)
    assert sum(len(r) for r, _ in known.values()) == sum(len(r) for r, _ in before.values()) - 1


def test_returns_of_one_policy_are_those_of_sessions_that_it_served_throughout(test_split):
    rows = torch.nonzero(test_split.sessions == int(test_split.sessions[test_split.steps == 1][0])).flatten()
    versions = torch.zeros(len(test_split), dtype=torch.int64)
    versions[rows[1:]] = 1  # promoted in the middle of a session
    data = replace(test_split, versions=versions, version_names=("old", "new"))
    count = len(whole_sessions(data, 1.0).returns)
    assert sum(len(r) for r, _ in known_returns(data, 1.0, "old").values()) == count - 1
    assert known_returns(data, 1.0, "new") == {} == known_returns(data, 1.0, "never served")
    with pytest.raises(ValueError, match="do not know their policies' versions"):
        known_returns(replace(data, versions=None), 1.0, "old")


def test_versions_are_those_of_the_log(test_split):
    assert test_split.version_names == ("toy",) and not test_split.versions.any()
