"""IQL against its paper: each loss computed again, plainly, on the same weights."""

import copy

import pytest
import torch
from torch.distributions import Normal

from tests.training.policies.plain import assert_adam_step, batch_of, mlp, q_of
from training.policies.iql import IQL


def test_one_step_is_the_papers(random_transitions, small):
    data = random_transitions()
    config = small(iql={"expectile": 0.8, "inverse_temperature": 2.0, "max_weight": 0.9})
    learner = IQL(config, data, seed=3)
    before = copy.deepcopy(learner)
    curves = dict(zip(IQL.curves, learner.step().tolist(), strict=True))
    s, a, r, next_s, done = batch_of(learner, data)
    logged_q = torch.minimum(*q_of(before.target_critics, s, a)).detach()

    u = logged_q - mlp(before.value.layers, s).squeeze(1)
    value_loss = torch.where(u > 0, 0.8 * u**2, 0.2 * u**2).mean()
    y = r + 0.95 * (1 - done) * mlp(before.value.layers, next_s).squeeze(1).detach()
    loss = sum((y - q).square().mean() for q in q_of(before.critics, s, a))
    assert curves["value_loss"] == pytest.approx(value_loss.item(), rel=1e-5)
    assert curves["critic_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert curves["target"] == pytest.approx(y.mean().item(), rel=1e-5)
    assert_adam_step(learner.value, before.value, value_loss, config.critic_lr)
    assert_adam_step(learner.critics, before.critics, loss, config.critic_lr)

    with torch.no_grad():
        weight = (2.0 * (logged_q - mlp(learner.value.layers, s).squeeze(1))).exp().clamp(max=0.9)
    assert weight.max() == pytest.approx(0.9) and weight.min() < 0.9
    std = (-5.0 + 7.0 * torch.sigmoid(before.policy.place)).exp()
    density = Normal(torch.tanh(mlp(before.policy.net.layers, s)), std).log_prob(a).sum(dim=1)
    actor_loss = -(weight * density).mean()
    assert curves["actor_loss"] == pytest.approx(actor_loss.item(), rel=1e-5)
    assert curves["weight"] == pytest.approx(weight.mean().item(), rel=1e-5)
    assert_adam_step(learner.policy, before.policy, actor_loss, config.actor_lr)


def test_a_higher_expectile_gives_higher_values(random_transitions, small):
    data, values = random_transitions(), []
    for expectile in (0.55, 0.95):
        learner = IQL(small(iql={"expectile": expectile}, critic_lr=5e-3), data, seed=1)
        for _ in range(150):
            learner.step()
        with torch.no_grad():
            values.append(learner.value(learner.standardised(data.states)).mean().item())
    assert values[1] > values[0]
