"""Rounds explore as their method says, around what was learnt so far, and every method ends as a ranker."""

from pathlib import Path

import numpy as np
import pytest

from training.experiments.ground import Ground
from training.experiments.learning import Rounds, train
from training.experiments.table import Method, Table, load_table
from training.policies.xmtf import XMTF

SMALL = Path(__file__).with_name("small.yaml")


@pytest.fixture(scope="module")
def table() -> Table:
    return load_table(SMALL)


@pytest.fixture(scope="module")
def ground(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    ground = Ground(table, "log_sum", 1, tmp_path_factory.mktemp("ground"))
    ground.prepare()
    return ground


def rounds_of(ground: Ground, rounds: int, explore: str, **learner) -> Rounds:
    method = Method(name="x", kind="learner", learner=learner, rounds=rounds, explore=explore)
    return Rounds(ground, method, ground.table.method_settings("log_sum", method))


def test_a_box_is_explored_around_the_policy_learnt_so_far(ground: Ground) -> None:
    rounds = rounds_of(ground, 2, "box", algorithms=["unified_rl"], unified_rl={"critics": 2})
    learner = rounds.begin(0)
    first = rounds.data
    assert first.arm_names == ("box",)
    np.testing.assert_allclose(
        first.action_means.numpy(), np.tile(ground.settings.fusion.static_action, (len(first), 1)), atol=1e-6
    )
    off = np.abs(first.actions.numpy() - first.action_means.numpy())
    assert 0.14 < off.max() <= 0.15 + 1e-6
    for _ in range(20):
        learner.step()
    policy = rounds.learnt().policy
    later = rounds.begin(1)
    assert len(rounds.data) > len(first) and later.step_count == 20
    fresh = rounds.data.action_means[len(first) :].numpy()
    np.testing.assert_allclose(
        fresh, policy.act_in_parts(rounds.data.states[len(first) :].numpy()), atol=1e-5
    )
    # the box of all rows is around the present policy, also of those that were explored around another
    np.testing.assert_allclose(later.means.numpy(), policy.act_in_parts(later.data.states.numpy()), atol=1e-5)


def test_later_rounds_of_xmtf_explore_on_the_cells(ground: Ground) -> None:
    rounds = rounds_of(ground, 2, "cells", algorithms=["xmtf"])
    first = rounds.begin(0)
    for _ in range(20):
        first.step()
    assert first.outer is None and rounds.learnt().policy is not None
    before = rounds.data
    later = rounds.begin(1)
    assert isinstance(later, XMTF) and later.outer is not None and later.step_count == 20
    assert not np.isin(rounds.data.rewards.numpy(), before.rewards.numpy()).all()  # its own log alone
    assert (rounds.data.action_means == 0.0).all() and rounds.data.arm_names == ("random", "noise")
    later.step()
    learnt = rounds.learnt()
    assert learnt.policy is None
    assert np.isfinite(learnt.evaluate(ground.curve()).session_return).all()


def test_rounds_share_the_steps(ground: Ground) -> None:
    method = Method(name="x", kind="learner", rounds=2)
    settings = ground.table.method_settings("log_sum", method)
    told: list[float] = []
    learnt = train(ground, method, settings, lambda share, what: told.append(share))
    assert [point["step"] for point in learnt.curve] == [20, 40]
    assert learnt.policy is not None and learnt.transitions > 0
