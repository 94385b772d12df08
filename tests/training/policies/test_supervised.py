"""The supervised fusion: its loss pair by pair, and the order that it learns."""

import copy
import dataclasses
import math
from datetime import date

import numpy as np
import pytest
import torch

from tests.training.policies.plain import assert_adam_step, mlp
from training.contract.errors import DataError
from training.contract.policy import load_policy, make_actor
from training.policies import train
from training.policies.networks import standardisation, standardise
from training.policies.supervised import Supervised

DAY = date(2026, 1, 7)


def test_one_step_is_bpr_on_the_fusion_score(random_transitions, small, three_heads):
    data = random_transitions()
    rewards = (data.item_rewards * 3).round()  # with ties
    rewards[::2, 3:] = math.nan  # pages of three items among those of four
    data = dataclasses.replace(data, item_rewards=rewards)
    config = small()
    learner = Supervised(config, data, 3, three_heads)
    before = copy.deepcopy(learner)
    curves = dict(zip(Supervised.curves, learner.step().tolist(), strict=True))

    rows = learner.batch(0).rows
    s = standardise(data.states, *standardisation(data.states))[rows]
    action = torch.tanh(mlp(before.policy.layers, s))
    terms, right = [], 0
    for b, row in enumerate(rows.tolist()):
        low, high = torch.tensor(three_heads.low), torch.tensor(three_heads.high)
        alpha = low + (action[b] + 1) / 2 * (high - low)
        f = (alpha * torch.log(data.item_scores[row] + torch.tensor(three_heads.beta))).sum(dim=1)
        for i in range(4):
            for j in range(4):
                if rewards[row, i] > rewards[row, j]:
                    terms.append(-torch.log(torch.sigmoid(f[i] - f[j])))
                    right += int(f[i] > f[j])
    loss = torch.stack(terms).mean()
    assert curves["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert curves["right_order"] == pytest.approx(right / len(terms))
    assert_adam_step(learner.policy, before.policy, loss, config.actor_lr)


def test_it_learns_who_cares_for_what(random_transitions, small, three_heads):
    """The first head says what users with a high first feature like, the second what the others do."""
    data = random_transitions()
    first = data.states[:, 0] > data.states[:, 0].mean()
    rewards = torch.where(first[:, None], data.item_scores[..., 0], data.item_scores[..., 1])
    data = dataclasses.replace(data, item_rewards=rewards)
    learner = Supervised(small(batch_size=64, actor_lr=1e-2), data, 0, three_heads)
    points = [learner.step().tolist() for _ in range(300)]
    assert points[0][1] < 0.75 < 0.9 < points[-1][1]
    tensors, options = learner.export()
    actions = make_actor(learner.actor, tensors, options)(data.states.numpy())
    weights = three_heads.to_weights(actions)
    shares = weights[:, 0] / weights[:, :2].sum(axis=1)
    assert np.mean(shares[first.numpy()]) > 0.8 > 0.2 > np.mean(shares[~first.numpy()])


def test_a_log_without_pairs_teaches_nothing(random_transitions, small, three_heads):
    data = random_transitions()
    data = dataclasses.replace(data, item_rewards=torch.zeros_like(data.item_rewards))
    learner = Supervised(small(), data, 0, three_heads)
    before = copy.deepcopy(learner.policy.state_dict())
    assert learner.step().tolist() == [0.0, 0.0]
    assert all(torch.equal(value, before[name]) for name, value in learner.policy.state_dict().items())


def test_it_says_what_it_lacks(random_transitions, small, three_heads):
    data = dataclasses.replace(random_transitions(), item_scores=None)
    with pytest.raises(DataError, match="item_scores"):
        Supervised(small(), data, 0, three_heads)
    with pytest.raises(ValueError, match="fusion"):
        Supervised(small(), random_transitions(), 0)


def test_the_daily_retrain_gives_it_the_items(toy):
    world = toy(learner={"algorithms": ["supervised"], "steps": 300, "actor_lr": 1e-2})
    world.log(40)
    policy = load_policy(world.settings.data / train(world.settings, DAY)["pool"]["supervised"]["policy"])
    weights = world.settings.fusion.to_weights(policy.act(world.start(50, np.random.default_rng(0))))
    click, like = weights.mean(axis=0)
    assert like > 2.0 * click  # an item's reward is 0.2 click + 0.8 like
