"""CQL+SAC against its papers: each loss computed again with torch.distributions on the same weights."""

import copy
import dataclasses
import math

import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from tests.training.policies.plain import assert_adam_step, batch_of, mlp, q_of
from training.policies.cql_sac import CQLSAC


def policy(net, s):
    mean, log_std = mlp(net.layers, s).chunk(2, dim=-1)
    std = log_std.clamp(-20, 2).exp()
    return mean, std, TransformedDistribution(Normal(mean, std), TanhTransform(cache_size=1))


def test_one_step_is_the_papers(random_transitions, small):
    data = random_transitions()
    own = {"conservative_weight": 3.0, "actions": 4, "temperature": 0.3, "temperature_lr": 0.1}
    config = small(cql_sac=own)
    learner = CQLSAC(config, data, seed=3)
    before, noise = copy.deepcopy(learner), torch.Generator().manual_seed(3)
    curves = dict(zip(CQLSAC.curves, learner.step().tolist(), strict=True))
    s, a, r, next_s, done = batch_of(learner, data)
    with torch.no_grad():
        next_a = torch.tanh(policy(before.policy, next_s)[0])
        y = r + 0.95 * (1 - done) * torch.minimum(*q_of(before.target_critics, next_s, next_a))

        def drawn(states):
            mean, std, distribution = policy(before.policy, states[:, None])
            actions = torch.tanh(mean + std * torch.randn(16, 4, 3, generator=noise))
            return actions, distribution.log_prob(actions.clamp(-1 + 1e-6, 1 - 1e-6)).sum(dim=-1)

        here, log_here = drawn(s)
        there, log_there = drawn(next_s)
        uniform = torch.rand(16, 4, 3, generator=noise) * 2 - 1
    q = q_of(before.critics, s, a)
    td = sum((y - one).square().mean() for one in q)
    penalty = 0.0
    for one, net in zip(q, before.critics.q, strict=True):
        values = [
            mlp(net.layers, s[:, None].expand(-1, 4, -1), actions).squeeze(-1) - log_density
            for actions, log_density in ((here, log_here), (there, log_there), (uniform, math.log(0.5**3)))
        ]
        penalty = penalty + 3.0 * (torch.cat(values, dim=1).logsumexp(dim=1) - one).mean()
    assert curves["target"] == pytest.approx(y.mean().item(), rel=1e-5)
    assert curves["critic_loss"] == pytest.approx(td.item(), rel=1e-5)
    assert curves["conservative_loss"] == pytest.approx(penalty.item(), rel=1e-4)
    assert_adam_step(learner.critics, before.critics, td + penalty, config.critic_lr)

    mean, std, distribution = policy(before.policy, s)
    new_a = torch.tanh(mean + std * torch.randn(16, 3, generator=noise))
    log_density = distribution.log_prob(new_a).sum(dim=-1)
    assert curves["entropy"] == pytest.approx(-log_density.mean().item(), rel=1e-4)
    assert before.temperature.log.exp().item() == pytest.approx(0.3)
    temperature_loss = -(before.temperature.log.exp() * (log_density.detach() - 3)).mean()
    assert_adam_step(learner.temperature, before.temperature, temperature_loss, 0.1)
    alpha = learner.temperature.log.detach().exp()
    assert curves["temperature"] == pytest.approx(alpha.item())
    actor_loss = (alpha * log_density - torch.minimum(*q_of(learner.critics, s, new_a))).mean()
    assert curves["actor_loss"] == pytest.approx(actor_loss.item(), rel=1e-4)
    assert_adam_step(learner.policy, before.policy, actor_loss, config.actor_lr)


def test_densities_hold_where_tanh_is_flat(random_transitions, small):
    learner = CQLSAC(small(), random_transitions(), seed=0)
    with torch.no_grad():
        learner.policy.layers[-1].bias[:3] = 30.0  # tanh is 1 to the last bit
        _, log_density = learner.sample(torch.zeros(16, 5), 8)
    assert log_density.shape == (16, 8) and torch.isfinite(log_density).all()


def test_the_penalty_lowers_q_off_the_data(random_transitions, small):
    data = random_transitions()
    data = dataclasses.replace(data, actions=0.2 * data.actions)
    gaps = []
    for weight in (0.0, 5.0):
        config = small(cql_sac={"conservative_weight": weight}, critic_lr=1e-2)
        learner = CQLSAC(config, data, seed=1)
        for _ in range(100):
            learner.step()
        s = learner.standardised(data.states)
        off = torch.rand(len(s), 20, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            gaps.append((learner.critics(s, data.actions).mean() - learner.critics(s, off).mean()).item())
    assert gaps[1] > gaps[0] + 0.5
