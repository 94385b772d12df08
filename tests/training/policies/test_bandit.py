"""The bandit takes the best action of the moment, where that is not the best of the session."""

from datetime import date

import numpy as np
import pytest

from training.contract.policy import load_policy
from training.policies import train
from training.policies.bandit import Bandit

DAY = date(2026, 1, 7)


def test_its_target_is_the_reward(random_transitions, small):
    data = random_transitions(dones=0.0)
    learner = Bandit(small(), data, seed=0)
    target = learner.step()[Bandit.curves.index("target")]
    assert target == pytest.approx(float(data.rewards[learner.batch(0).rows].mean()), rel=1e-5)


def test_it_is_greedy(toy):
    width = (48, 48)
    world = toy(
        learner={
            "algorithms": ["bandit"],
            "steps": 500,
            "target_rate": 0.2,
            "critic_hidden": width,
            "critic_lr": 2e-3,
            "batchrl_mtf": {
                "latent_clip": 1.5,
                "generator_hidden": width,
                "perturbation_hidden": width,
                "perturbation_lr": 2e-3,
            },
        }
    )
    world.log(300)
    policy = load_policy(world.settings.data / train(world.settings, DAY)["pool"]["bandit"]["policy"])
    states = world.start(400, np.random.default_rng(0))
    actions = policy.act(states)
    behaviour = np.random.default_rng(1).uniform(-1, 1, actions.shape)
    greedy = np.stack([np.ones(len(states)), states[:, 1]], axis=1)
    now = [world.reward(states, a).mean() for a in (behaviour, actions, greedy)]
    assert (now[1] - now[0]) / (now[2] - now[0]) > 0.7
    assert actions[:, 0].mean() > 0.5  # the best session has −1
