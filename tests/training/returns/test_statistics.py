"""Sums over rows: what they are, and that it does not matter in which parts they were taken."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.session_log import FEATURES, LENGTH, Sessions, with_rewards
from training.returns import Statistics, of_parts, of_transitions
from training.returns.statistics import cluster_of
from training.trajectories.to_go import returns_to_go

LOG = Sessions(static=0.3, users=80).log(150)


def same(one: Statistics, other: Statistics) -> None:
    for f in fields(Statistics):
        np.testing.assert_allclose(getattr(one, f.name), getattr(other, f.name), rtol=1e-9, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=80, max_size=80))
def test_they_add_up_over_disjoint_users_and_over_days(day_of_user: list[int]) -> None:
    day = torch.tensor(day_of_user)[LOG.users]
    parts = [of_transitions(FEATURES, LOG.take(day == d)) for d in range(4) if (day == d).any()]
    same(sum(parts[1:], parts[0]), of_transitions(FEATURES, LOG))


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_says_nothing(random) -> None:
    order = list(range(len(LOG)))
    random.shuffle(order)
    same(of_transitions(FEATURES, LOG.take(torch.tensor(order)), 0.9), of_transitions(FEATURES, LOG, 0.9))


def test_clusters_part_them() -> None:
    whole = of_transitions(FEATURES, LOG)
    some = np.arange(len(whole.rows)) % 3 == 0
    mine = some[cluster_of(LOG.users.numpy())]
    for kept, rows in ((some, mine), (~some, ~mine)):
        of_some = Statistics(
            whole.zz * kept[:, None, None], whole.zy * kept[:, None], whole.yy * kept, whole.rows * kept
        )
        same(of_transitions(FEATURES, LOG.take(torch.from_numpy(rows))), of_some)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0, 100.0]), st.integers(0, 2**32 - 1), st.booleans())
def test_one_pass_gives_the_statistics_of_every_weighting_of_the_parts(factor, seed, by_session) -> None:
    rng = np.random.default_rng(seed)
    # sums of these are exact in single precision
    time, interaction = (torch.from_numpy(rng.integers(-64, 64, len(LOG)) / 64.0).float() for _ in range(2))
    log = replace(LOG, by_session=torch.full_like(LOG.by_session, by_session))
    parts = of_parts(FEATURES, replace(log, rewards=time + interaction, watch_rewards=time), 0.9)
    for found, rewards in (
        (parts.leaning(factor), time + factor * interaction),
        (parts.whole, time + interaction),
        (parts.time, time),
        (parts.interaction, interaction),
    ):
        same(found, of_transitions(FEATURES, replace(log, rewards=rewards), 0.9))


def test_the_reward_as_it_is_has_the_bits_that_it_has_alone() -> None:
    alone = of_transitions(FEATURES, LOG)
    parts = of_parts(FEATURES, replace(LOG, watch_rewards=0.3 * LOG.rewards))
    for found in (parts.whole, parts.leaning(1.0)):
        for f in fields(Statistics):
            np.testing.assert_array_equal(getattr(found, f.name), getattr(alone, f.name))
    with pytest.raises(ValueError, match="time part"):
        of_parts(FEATURES, LOG)


def test_a_session_that_holds_its_weights_is_one_row_and_one_that_draws_anew_is_many() -> None:
    held = of_transitions(FEATURES, LOG)
    assert held.rows.sum() == 150
    returns = returns_to_go(LOG, 1.0)[LOG.steps.numpy() == 0]
    np.testing.assert_allclose(held.zy[:, 0].sum(), returns.sum())
    np.testing.assert_allclose(held.yy.sum(), np.square(returns).sum())

    anew = replace(LOG, by_session=torch.zeros_like(LOG.by_session))
    drawn = torch.isfinite(anew.log_densities)
    found = of_transitions(FEATURES, anew)
    assert found.rows.sum() == int(drawn.sum()) + int((~drawn & (LOG.steps == 0)).sum())
    # a request is a share of its session: its action counts a third, what is known of the user in full
    one = of_transitions(FEATURES, anew.take(torch.nonzero(drawn).flatten()))
    every = FEATURES.rows(LOG.states[drawn].numpy(), LOG.actions[drawn].numpy()).sum(axis=0)
    np.testing.assert_allclose(one.zz.sum(axis=0)[0, FEATURES.action], every[FEATURES.action] / LENGTH)
    np.testing.assert_allclose(one.zz.sum(axis=0)[0, FEATURES.groups["state"]], every[1:3])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=70), min_size=1, max_size=6),
    st.sampled_from([1.0, 0.95, 0.5, 0.1]),
    st.randoms(use_true_random=False),
)
def test_returns_to_go_are_the_discounted_sums_of_what_follows(sessions, gamma, random) -> None:
    wanted = []
    for rewards in sessions:
        to_go = [0.0]
        for reward in reversed(rewards):
            to_go.append(reward + gamma * to_go[-1])
        wanted += to_go[:0:-1]
    numbers = [i for i, rewards in enumerate(sessions) for _ in rewards]
    steps = [t for rewards in sessions for t in range(len(rewards))]
    order = list(range(len(steps)))
    random.shuffle(order)
    rows = torch.tensor(order)
    blank = LOG.take(torch.zeros(len(steps), dtype=torch.int64))
    data = replace(blank, sessions=torch.tensor(numbers), steps=torch.tensor(steps))
    data = with_rewards(data, np.concatenate([np.array(r, dtype=np.float64) for r in sessions]))
    np.testing.assert_allclose(returns_to_go(data.take(rows), gamma), np.array(wanted)[order], atol=1e-9)


def test_users_are_spread_over_the_clusters_and_stay_in_theirs() -> None:
    users = np.arange(20_000)
    found = cluster_of(users)
    assert np.array_equal(cluster_of(users[::-1])[::-1], found)
    counts = np.bincount(found, minlength=16)
    assert counts.min() > 0.8 * counts.mean()
