"""TD3, TD3+BC and UWAC+TD3 against their papers: each loss computed again, plainly, on the same weights."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.training.policies.plain import assert_adam_step, batch_of, mlp, q_of
from training.policies.td3 import TD3, TD3BC, UWACTD3


def pi(net, s):
    return torch.tanh(mlp(net.layers, s))


def expected_target(before, noise, r, next_s, done, width=3):
    smoothing = (0.2 * torch.randn(16, width, generator=noise)).clamp(-0.5, 0.5)
    next_a = (pi(before.target_policy, next_s) + smoothing).clamp(-1, 1)
    return r + 0.95 * (1 - done) * torch.minimum(*q_of(before.target_critics, next_s, next_a)), next_a


@pytest.mark.parametrize("algorithm", [TD3, TD3BC])
def test_one_step_is_the_papers(algorithm, random_transitions, small):
    data, config = random_transitions(), small(td3={"policy_delay": 1})
    learner = algorithm(config, data, seed=3)
    before, noise = copy.deepcopy(learner), torch.Generator().manual_seed(3)
    curves = dict(zip(algorithm.curves, learner.step().tolist(), strict=True))
    s, a, r, next_s, done = batch_of(learner, data)
    with torch.no_grad():
        y, _ = expected_target(before, noise, r, next_s, done)
    loss = sum((y - q).square().mean() for q in q_of(before.critics, s, a))
    assert curves["target"] == pytest.approx(y.mean().item(), rel=1e-5)
    assert curves["critic_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert_adam_step(learner.critics, before.critics, loss, config.critic_lr)
    # the actor climbs the critics as they are after their step
    acted = pi(before.policy, s)
    q = q_of(learner.critics, s, acted)[0]
    actor_loss = -q.mean()
    if algorithm is TD3BC:
        actor_loss = -2.5 * q.mean() / q.detach().abs().mean() + ((acted - a) ** 2).mean()
    assert_adam_step(learner.policy, before.policy, actor_loss, config.actor_lr)


def test_the_actor_waits_for_the_critics(random_transitions, small):
    learner = TD3(small(td3={"policy_delay": 3}), random_transitions(), seed=0)
    start = copy.deepcopy(learner.policy.state_dict())
    learner.step()
    learner.step()
    assert all(torch.equal(value, start[name]) for name, value in learner.policy.state_dict().items())
    learner.step()
    assert not torch.equal(learner.policy.layers[0].weight, start["layers.0.weight"])


@pytest.mark.parametrize("algorithm", [TD3, TD3BC, UWACTD3])
def test_targets_move_as_the_settings_say(algorithm, random_transitions, small):
    learner = algorithm(small(target_interval=2, target_rate=0.25), random_transitions(), seed=0)
    start = copy.deepcopy(learner.target_policy), copy.deepcopy(learner.target_critics)
    learner.step()
    assert torch.equal(learner.target_policy.layers[0].weight, start[0].layers[0].weight)
    learner.step()
    for online, target, old in zip(
        (learner.policy, learner.critics), (learner.target_policy, learner.target_critics), start, strict=True
    ):
        for p, moved, p0 in zip(online.parameters(), target.parameters(), old.parameters(), strict=True):
            torch.testing.assert_close(moved, 0.25 * p + 0.75 * p0)


def dropped(q, s, a, count, noise, p):
    """``count`` passes of one critic, unit by unit dropped; [B, count]."""
    h = torch.cat([s, a], dim=1)[:, None, :].expand(-1, count, -1)
    for index, layer in enumerate(q.layers):
        if index:
            h = F.relu(h) * (torch.rand(*h.shape, generator=noise) >= p) / (1 - p)
        h = layer(h)
    return h.squeeze(-1)


def test_uwac_weights_both_losses_by_the_inverse_variance(random_transitions, small):
    data = random_transitions()
    config = small(td3={"policy_delay": 1}, uwac={"samples": 6, "beta": 0.002, "clip": 1.5, "dropout": 0.2})
    learner = UWACTD3(config, data, seed=3)
    before, noise = copy.deepcopy(learner), torch.Generator().manual_seed(3)
    curves = dict(zip(UWACTD3.curves, learner.step().tolist(), strict=True))
    s, a, r, next_s, done = batch_of(learner, data)
    with torch.no_grad():
        _, next_a = expected_target(before, noise, r, next_s, done)
        draws = [dropped(q, next_s, next_a, 6, noise, 0.2) for q in before.target_critics.q]
        y = r + 0.95 * (1 - done) * torch.minimum(*(d.mean(dim=1) for d in draws))
        weight = (0.002 / sum(d.var(dim=1) for d in draws)).clamp(0.0, 1.5)
        weight[done == 1] = 1.5  # nothing of the target is uncertain
    assert 0.0 < weight.min() < 1.5 and (weight[done == 0] < 1.5).any()
    q = [dropped(q, s, a, 1, noise, 0.2).squeeze(1) for q in before.critics.q]
    loss = sum((weight * (y - one).square()).mean() for one in q)
    assert curves["critic_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert curves["weight"] == pytest.approx(weight.mean().item(), rel=1e-4)
    assert_adam_step(learner.critics, before.critics, loss, config.critic_lr)
    draws = [dropped(q, s, pi(before.policy, s), 6, noise, 0.2) for q in learner.critics.q]
    weight = (0.002 / sum(d.detach().var(dim=1) for d in draws)).clamp(0.0, 1.5)
    actor_loss = -(weight * draws[0].mean(dim=1)).mean()
    assert_adam_step(learner.policy, before.policy, actor_loss, config.actor_lr)


def test_a_session_end_masks_the_bootstrap(random_transitions, small):
    for algorithm in (TD3, UWACTD3):
        data = random_transitions(dones=1.1)
        learner = algorithm(small(), data, seed=0)
        target = learner.step()[algorithm.curves.index("target")]
        assert target == pytest.approx(float(data.rewards[learner.batch(0).rows].mean()), rel=1e-5)
