"""Collected transitions are those of the sessions that were played."""

from datetime import date

import numpy as np
import pytest
import torch

from training.contract import exploration
from training.world.simulator.collect import Arm, collect, random_arm
from training.world.simulator.references import Bench

DAY = date(2026, 1, 5)


def arms(settings):
    static = settings.fusion.static_action
    return [
        random_arm(len(settings.heads), share=0.5),
        Arm("noise", lambda states, requests: np.tile(static, (len(states), 1)), 0.1, share=0.15),
        Arm("box", lambda states, requests: np.tile(static, (len(states), 1)), share=0.1, box=0.15),
        Arm("static", lambda states, requests: np.tile(static, (len(states), 1)), share=0.25),
    ]


@pytest.fixture(scope="module")
def collected(calm):
    bench = Bench(calm, DAY, sessions=300, seed=3)
    return bench, collect(bench, arms(bench.settings), seed=1)


def test_rows_follow_each_other(collected):
    bench, data = collected
    sessions, steps = data.sessions.numpy(), data.steps.numpy()
    same = sessions[1:] == sessions[:-1]
    assert (steps[1:][same] == steps[:-1][same] + 1).all()
    ahead = data.dones[:-1].numpy()[same]
    assert not ahead.any()  # a session ends with its last row
    np.testing.assert_array_equal(data.next_states[:-1][same], data.states[1:][same])
    np.testing.assert_array_equal(data.next_actions[:-1][same], data.actions[1:][same])
    assert len(np.unique(sessions)) > 250
    assert bench.settings.state_spec.width == data.states.shape[1]


def test_users_are_those_whose_sessions_were_played(collected):
    bench, data = collected
    expected = bench.scene.population.user_id[bench.user_row[data.sessions.numpy()]]
    np.testing.assert_array_equal(data.users.numpy(), expected)
    assert not data.by_session.any()


def test_arms_have_their_densities_and_actions(collected):
    _, data = collected
    counts = data.arm_counts()
    assert 110 < counts["random"]["sessions"] < 190 and set(counts) == {"random", "noise", "box", "static"}
    names = np.array(data.arm_names)[data.arms.numpy()]
    drawn = names != "static"
    assert np.isnan(data.log_densities.numpy()[~drawn]).all()
    np.testing.assert_allclose(data.actions[~drawn], data.action_means[~drawn], atol=1e-6)
    for name, std in (("random", 1.0), ("noise", 0.1)):
        rows = np.flatnonzero(names == name)
        expected = exploration.log_density(
            data.actions[rows].double().numpy(), data.action_means[rows].double().numpy(), std
        )
        np.testing.assert_allclose(data.log_densities[rows], expected, atol=1e-3)
    box = np.flatnonzero(names == "box")
    far = (data.actions[box] - data.action_means[box]).abs().max()
    assert 0.1 < far <= 0.15 + 1e-6 and torch.isfinite(data.log_densities[box]).all()


def test_rewards_are_the_items_and_their_parts(collected):
    _, data = collected
    np.testing.assert_allclose(data.item_rewards.sum(dim=1), data.rewards, atol=1e-4)
    assert (data.watch_rewards <= data.item_rewards.clamp(min=0).sum(dim=1) + 20.0).all()
    assert data.item_scores.shape == (len(data), data.item_rewards.shape[1], data.actions.shape[1])


def test_the_same_seed_gives_the_same_log(collected):
    bench, data = collected
    again = collect(bench, arms(bench.settings), seed=1)
    assert (again.actions == data.actions).all() and (again.rewards == data.rewards).all()
