"""What sessions returned: whole ones only."""

import numpy as np
import pytest
import torch

from tests.training.conftest import DAY
from training import trajectories
from training.trajectories import whole_sessions

GAMMA = 0.95


def fixed(states, rng):
    return np.full((len(states), 2), 0.5, dtype=np.float32)


@pytest.fixture
def test_split(toy):
    world = toy(learner={"mixed_exploration": False}, evaluation={"test_share": 0.5})
    world.log(40, {"static": fixed, "champion": fixed, "random": fixed})
    return trajectories.load(world.settings, DAY).test


def test_returns_count_whole_sessions_only(test_split):
    returns = whole_sessions(test_split, GAMMA)
    own = test_split.sessions == int(test_split.sessions[0])
    expected = sum(GAMMA**t * float(r) for t, r in enumerate(test_split.rewards[own]))
    assert returns[0] == pytest.approx(expected, rel=1e-5)
    assert len(returns) == len(torch.unique(test_split.sessions))
    without_first = test_split.take(torch.arange(1, len(test_split)))
    without_last = test_split.take(torch.nonzero(~(own & (test_split.dones == 1))).flatten())
    for less in (without_first, without_last):
        assert len(whole_sessions(less, GAMMA)) == len(returns) - 1


def test_versions_are_those_of_the_log(test_split):
    assert test_split.version_names == ("toy",) and not test_split.versions.any()
