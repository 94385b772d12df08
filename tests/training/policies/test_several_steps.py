"""Targets of several steps against a walk along every session, request by request."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.several_steps import over_steps
from training.trajectories import Transitions


def sessions_of(lengths: list[tuple[int, bool]], gap: bool, seed: int) -> Transitions:
    """Sessions of the given lengths that were left or not, in shuffled rows; s' of a row is its number.

    ``gap``: the second request of every session of more than three is not in the data.
    """
    rng = np.random.default_rng(seed)
    rows = [
        (session, step, float(left and step == length - 1))
        for session, (length, left) in enumerate(lengths)
        for step in range(length)
        if not (gap and length > 3 and step == 1)
    ]
    rng.shuffle(rows)
    session, step, done = (np.array(column) for column in zip(*rows, strict=True))
    count = len(rows)
    numbers = torch.arange(count, dtype=torch.float32)[:, None]
    return Transitions(
        states=torch.zeros(count, 1),
        actions=torch.zeros(count, 1),
        rewards=torch.from_numpy(rng.normal(size=count)).float(),
        next_states=numbers,
        next_actions=numbers / count,
        dones=torch.from_numpy(done).float(),
        action_means=torch.zeros(count, 1),
        log_densities=torch.zeros(count, dtype=torch.float64),
        sessions=torch.from_numpy(session.astype(np.int64)),
        users=torch.from_numpy(session.astype(np.int64)),
        steps=torch.from_numpy(step.astype(np.int64)),
        by_session=torch.zeros(count, dtype=torch.bool),
        arms=torch.zeros(count, dtype=torch.int64),
        arm_names=("random",),
        watch_rewards=torch.from_numpy(rng.normal(size=count)).float(),
    )


@given(
    st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=6),
    st.booleans(),
    st.integers(1, 10),
    st.sampled_from([0.0, 0.5, 0.95]),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_a_target_is_the_sum_along_the_session(lengths, gap, n, gamma, seed):
    data = sessions_of(lengths, gap, seed)
    found = over_steps(data, n, gamma)
    row_of = {
        (s, t): i for i, (s, t) in enumerate(zip(data.sessions.tolist(), data.steps.tolist(), strict=True))
    }
    q = np.random.default_rng(seed).normal(size=len(data))  # Q'(s') by the row whose s' it is
    for (session, step), row in row_of.items():
        walked, last = 0.0, row
        watched = 0.0
        for m in range(n):
            at = row_of.get((session, step + m))
            if at is None:
                break
            walked += gamma**m * float(data.rewards[at])
            watched += gamma**m * float(data.watch_rewards[at])
            last, steps = at, m + 1
        expected = walked + gamma**steps * (1.0 - float(data.dones[last])) * q[last]
        bootstrap = gamma * (1.0 - float(found.dones[row])) * q[int(found.next_states[row])]
        assert float(found.rewards[row]) + bootstrap == pytest.approx(expected, abs=1e-5)
        assert float(found.watch_rewards[row]) == pytest.approx(watched, abs=1e-5)
        assert torch.equal(found.next_actions[row], data.next_actions[last])


def test_one_step_changes_nothing():
    data = sessions_of([(4, True), (2, False)], False, 0)
    assert over_steps(data, 1, 0.95) is data


def test_the_learner_takes_the_setting(random_transitions, small):
    data = random_transitions()
    chained = dataclasses.replace(
        data, sessions=torch.arange(len(data)) // 4, steps=torch.arange(len(data)) % 4
    )
    learners = {n: BatchRLMTF(small(target_steps=n), chained, 0) for n in (1, 3)}
    assert torch.equal(learners[1].data.rewards, data.rewards)
    assert torch.equal(learners[3].data.rewards, over_steps(chained, 3, 0.95).rewards)
    assert not torch.equal(learners[1].step(), learners[3].step())
