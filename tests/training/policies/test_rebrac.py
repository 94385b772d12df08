"""ReBRAC against its paper: both penalties computed again, plainly, on the same weights."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.training.policies.plain import assert_adam_step, batch_of, mlp
from training.policies.rebrac import ReBRAC


def q_of(critics, s, a):
    values = []
    for q in critics.q:
        h = torch.cat([s, a], dim=1)
        for layer, norm in zip(q.layers, q.norms, strict=False):
            h = F.relu(layer(h))
            h = (h - h.mean(dim=1, keepdim=True)) / (h.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            h = h * norm.weight + norm.bias
        values.append(q.layers[-1](h).squeeze(1))
    return values


def test_one_step_is_the_papers(random_transitions, small):
    data = random_transitions()
    data.next_actions.copy_(torch.rand(data.next_actions.shape) * 2 - 1)
    config = small(td3={"policy_delay": 1}, rebrac={"actor_weight": 0.3, "critic_weight": 0.2})
    learner = ReBRAC(config, data, seed=3)
    before, noise = copy.deepcopy(learner), torch.Generator().manual_seed(3)
    curves = dict(zip(ReBRAC.curves, learner.step().tolist(), strict=True))
    s, a, r, next_s, done = batch_of(learner, data)
    served = data.next_actions[learner.batch(0).rows]
    with torch.no_grad():
        smoothing = (0.2 * torch.randn(16, 3, generator=noise)).clamp(-0.5, 0.5)
        next_a = (torch.tanh(mlp(before.policy.layers, next_s)) + smoothing).clamp(-1, 1)
        next_q = torch.minimum(*q_of(before.target_critics, next_s, next_a))
        y = r + 0.95 * (1 - done) * (next_q - 0.2 * (next_a - served).square().sum(dim=1))
    loss = sum((y - q).square().mean() for q in q_of(before.critics, s, a))
    assert curves["target"] == pytest.approx(y.mean().item(), rel=1e-4)
    assert curves["critic_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert_adam_step(learner.critics, before.critics, loss, config.critic_lr)
    acted = torch.tanh(mlp(before.policy.layers, s))
    q = torch.minimum(*q_of(learner.critics, s, acted))
    actor_loss = 0.3 * (acted - a).square().sum(dim=1).mean() - q.mean() / q.detach().abs().mean()
    assert_adam_step(learner.policy, before.policy, actor_loss, config.actor_lr)


def test_a_strong_actor_penalty_imitates_the_log(random_transitions, small):
    data = random_transitions()
    data.actions.copy_(torch.tensor([0.5, -0.3, 0.1]).expand_as(data.actions))
    distances = []
    for weight in (0.0, 100.0):
        config = small(rebrac={"actor_weight": weight}, actor_lr=3e-3, critic_lr=1e-3)
        learner = ReBRAC(config, data, seed=0)
        for _ in range(300):
            learner.step()
        with torch.no_grad():
            acted = torch.tanh(learner.policy(learner.standardised(data.states)))
        distances.append((acted - data.actions).abs().mean().item())
    assert distances[1] < 0.1 < distances[0]
