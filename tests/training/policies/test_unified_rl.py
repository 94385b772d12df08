"""UnifiedRL against its formulas, computed again critic by critic on the same weights."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from training.contract.errors import DataError
from training.contract.settings import LearnerSettings
from training.policies.networks import standardisation, standardise
from training.policies.unified_rl import UnifiedRL, beyond
from training.trajectories import Transitions

CURVES = UnifiedRL.curves
D, K, N, E = 5, 3, 200, 4


def transitions(arm: str = "noise", seed: int = 0, dones: float = 0.2) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    return Transitions(
        states=torch.randn(N, D, generator=g) * 3.0 + 1.0,
        actions=torch.rand(N, K, generator=g) * 2.0 - 1.0,
        rewards=torch.randn(N, generator=g),
        next_states=torch.randn(N, D, generator=g),
        next_actions=torch.zeros(N, K),
        dones=(torch.rand(N, generator=g) < dones).float(),
        action_means=torch.rand(N, K, generator=g) * 2.0 - 1.0,
        log_densities=torch.zeros(N, dtype=torch.float64),
        sessions=torch.arange(N),
        users=torch.arange(N),
        steps=torch.zeros(N, dtype=torch.int64),
        by_session=torch.zeros(N, dtype=torch.bool),
        arms=torch.zeros(N, dtype=torch.int64),
        arm_names=(arm,),
        next_action_means=torch.rand(N, K, generator=g) * 2.0 - 1.0,
        watch_rewards=torch.randn(N, generator=g),
    )


def settings(own: dict | None = None, **values) -> LearnerSettings:
    small = {"batch_size": 16, "critic_hidden": (10, 12), "actor_hidden": (8,), "critic_lr": 1e-3}
    return LearnerSettings(**small | values, unified_rl={"critics": E} | (own or {}))


def plain_q(critics, member: int, s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    h = torch.cat([s, a], dim=1)
    for i, (w, b) in enumerate(zip(critics.weights, critics.biases, strict=True)):
        h = (F.relu(h) if i else h) @ w[member] + b[member]
    return h.squeeze(1)


def plain_pi(policy, s: torch.Tensor) -> torch.Tensor:
    for i, layer in enumerate(policy.layers):
        s = layer(F.relu(s) if i else s)
    return torch.tanh(s)


@pytest.mark.parametrize("arm", ["noise", "random"])
def test_one_step_is_its_formulas(arm):
    own = {"watch_weight": 0.5, "interaction_weight": 2.0, "outside": 3.0, "spread": 0.7, "decay": 1.5}
    data, config = transitions(arm), settings(own)
    learner = UnifiedRL(config, data, seed=3)
    before = copy.deepcopy(learner)
    curves = dict(zip(CURVES, learner.step().tolist(), strict=True))
    after = copy.deepcopy(learner.critics)  # the actor's loss uses the critics of after their step

    i = learner.batch(0).rows
    s = standardise(data.states, *standardisation(data.states))[i]
    next_s = standardise(data.next_states, *standardisation(data.states))[i]
    rewards = (data.watch_rewards[i], (data.rewards - data.watch_rewards)[i])
    next_a = plain_pi(before.policy, next_s)
    far = ((next_a - data.next_action_means[i]).abs() - 0.15).clamp(min=0).max(dim=1).values
    keep = torch.exp(-1.5 * far) if arm == "noise" else torch.ones(16)
    losses, targets = [], []
    for member in range(2 * E):
        y = rewards[member // E] + 0.95 * (1 - data.dones[i]) * keep * plain_q(
            before.critics, member, next_s, next_a
        )
        losses.append((y.detach() - plain_q(before.critics, member, s, data.actions[i])).square().mean())
        targets.append(y.mean().item())
    assert curves["critic_loss"] == pytest.approx(sum(losses).item(), rel=1e-4)
    assert curves["target"] == pytest.approx(sum(targets) / E, rel=1e-4, abs=1e-5)

    a = plain_pi(before.policy, s)
    q = torch.stack([plain_q(after, member, s, a) for member in range(2 * E)]).view(2, E, 16)
    value = 0.5 * q[0].mean(dim=0) + 2.0 * q[1].mean(dim=0)
    spread = 0.5 * q[0].std(dim=0) + 2.0 * q[1].std(dim=0)
    box = ((a - data.action_means[i]).abs() - 0.15).clamp(min=0).square().sum(dim=1).mean()
    outside = box if arm == "noise" else torch.zeros(())
    loss = (0.7 * spread - value).mean() / value.abs().mean().detach() + 3.0 * outside
    assert curves["outside"] == pytest.approx(outside.item(), rel=1e-4)
    assert curves["spread"] == pytest.approx(spread.mean().item(), rel=1e-4)
    assert curves["actor_loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    # each step is Adam's on its own loss
    sum(losses).backward()
    torch.optim.Adam(before.critics.parameters(), config.critic_lr).step()
    for ours, theirs in zip(learner.critics.parameters(), before.critics.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.data, atol=1e-6, rtol=1e-4)
    loss.backward()
    torch.optim.Adam(before.policy.parameters(), config.actor_lr).step()
    for ours, theirs in zip(learner.policy.parameters(), before.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.data, atol=1e-6, rtol=1e-4)


def test_a_strong_penalty_keeps_the_actor_in_the_box():
    means = torch.tensor([0.5, -0.5, 0.0]).expand(N, K).clone()
    data = dataclasses.replace(transitions(), action_means=means, next_action_means=means)
    learner = UnifiedRL(settings({"outside": 1_000.0}, actor_lr=3e-3), data, seed=0)
    for _ in range(400):
        learner.step()
    assert beyond(learner.act(data.states), means, 0.15).mean() < 0.01
    free = UnifiedRL(settings({"outside": 0.0, "spread": 0.0}, actor_lr=3e-3), data, seed=0)
    for _ in range(400):
        free.step()
    assert beyond(free.act(data.states), means, 0.15).mean() > 0.2


@pytest.mark.parametrize("arm", ["noise", "random"])
def test_the_box_is_around_the_present_policy_and_not_around_what_was_logged(arm):
    """Whatever the arm: also where the random group was, the present policy's box binds."""
    present = np.array([-0.4, 0.6, 0.1], dtype=np.float32)
    asked = []

    def behaviour(states):
        asked.append(states)
        return np.tile(present, (len(states), 1))

    data, config = transitions(arm), settings({"outside": 1_000.0, "decay": 1.5}, actor_lr=3e-3)
    learner = UnifiedRL(config, data, seed=0, behaviour=behaviour)
    # it sees states as the policy file does: raw
    np.testing.assert_array_equal(asked[0], data.states.numpy())
    np.testing.assert_array_equal(asked[1], data.next_states.numpy())
    before = copy.deepcopy(learner)
    target = dict(zip(CURVES, learner.step().tolist(), strict=True))["target"]
    i = learner.batch(0).rows
    next_s = standardise(data.next_states, *standardisation(data.states))[i]
    next_a = plain_pi(before.policy, next_s)
    far = ((next_a - torch.from_numpy(present)).abs() - 0.15).clamp(min=0).max(dim=1).values
    keep = 0.95 * (1 - data.dones[i]) * torch.exp(-1.5 * far)
    next_q = [plain_q(before.critics, member, next_s, next_a) for member in range(2 * E)]
    assert target == pytest.approx(
        (data.rewards[i].mean() + sum((keep * q).mean() for q in next_q) / E).item(), rel=1e-4
    )
    for _ in range(400):
        learner.step()
    assert beyond(learner.act(data.states), torch.from_numpy(present), 0.15).mean() < 0.01


@given(st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=2), st.floats(-1.0, 1.0), st.floats(0.01, 1.0))
def test_distance_to_the_box(action, mean, half):
    distance = beyond(torch.tensor(action), torch.tensor(mean), half)
    for a, d in zip(action, distance.tolist(), strict=True):
        nearest = min(max(a, mean - half), mean + half)
        assert d == pytest.approx(abs(a - nearest), abs=1e-6)


def test_without_the_watch_reward_it_says_so():
    with pytest.raises(DataError, match="watch_rewards"):
        UnifiedRL(settings(), dataclasses.replace(transitions(), watch_rewards=None), seed=0)
