"""What holds for every registered algorithm: it resumes bit for bit, serves what it learnt, and learns."""

import dataclasses
from datetime import date

import numpy as np
import pytest
import torch

from training.contract.policy import load_policy, make_actor
from training.policies import train
from training.policies.retrain import ALGORITHMS

DAY = date(2026, 1, 7)

every_algorithm = pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))


@every_algorithm
def test_it_resumes_bit_for_bit(algorithm, random_transitions, small, three_heads):
    def fresh():
        return ALGORITHMS[algorithm](small(target_interval=3), random_transitions(), 5, three_heads)

    whole, half, resumed = fresh(), fresh(), fresh()
    for _ in range(13):
        half.step()
    resumed.load_state({name: tensor.clone() for name, tensor in half.state().items()})
    for _ in range(20):
        points = whole.step()
    for _ in range(7):
        resumed_points = resumed.step()
    assert torch.equal(points, resumed_points) and len(points) == len(whole.curves)
    assert torch.isfinite(points).all()
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name
    ours, theirs = whole.export()[0], resumed.export()[0]
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


READS = {"supervised": ("states", "item_scores", "item_rewards")}


@every_algorithm
def test_a_step_reads_what_it_should(algorithm, random_transitions, small, three_heads):
    """A seed gives the same step, and none of the data is passed over."""

    def after(**columns):
        data = dataclasses.replace(random_transitions(), **columns)
        return ALGORITHMS[algorithm](small(), data, 1, three_heads).step()

    data = random_transitions()
    assert torch.equal(after(), after())
    for column in READS.get(algorithm, ("states", "actions", "rewards")):
        assert not torch.equal(after(), after(**{column: getattr(data, column).flip(0)})), column


# what the torch side acts by, for the learners whose export is a plain deterministic actor
MEANS = {
    "td3": lambda learner, s: learner.policy(s),
    "rebrac": lambda learner, s: learner.policy(s),
    "td3_bc": lambda learner, s: learner.policy(s),
    "uwac_td3": lambda learner, s: learner.policy(s),
    "unified_rl": lambda learner, s: learner.policy(s),
    "cql_sac": lambda learner, s: learner.policy(s)[:, :3],
    "iql": lambda learner, s: learner.policy.net(s),
    "supervised": lambda learner, s: learner.policy(s),
}


@pytest.mark.parametrize("algorithm", sorted(MEANS))
def test_the_exported_actor_is_the_torch_policy(algorithm, random_transitions, small, three_heads):
    learner = ALGORITHMS[algorithm](small(), random_transitions(), 1, three_heads)
    for _ in range(10):
        learner.step()
    tensors, options = learner.export()
    assert learner.actor == "deterministic"
    states = torch.randn(64, 5) * 20.0  # far enough for the clip to matter
    with torch.no_grad():
        ours = torch.tanh(MEANS[algorithm](learner, learner.standardised(states))).numpy()
    theirs = make_actor(learner.actor, tensors, options)(states.numpy())
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.fixture(scope="module")
def logged(make_toy, tmp_path_factory):
    """A toy world whose log is uniform, and the true value of that."""
    width = (48, 48)
    world = make_toy(
        tmp_path_factory.mktemp("toy"),
        learner={
            "steps": 1_000,
            "target_rate": 0.2,
            "critic_hidden": width,
            "actor_hidden": width,
            "critic_lr": 2e-3,
            "actor_lr": 2e-3,
            "batchrl_mtf": {
                "latent_clip": 1.5,  # the log is uniform: actions far from its mean are in the data
                "generator_hidden": width,
                "perturbation_hidden": width,
                "perturbation_lr": 2e-3,
            },
            "unified_rl": {"critics": 4},
            "cql_sac": {"conservative_weight": 0.2, "actions": 4},  # a uniform log has no outside
        },
    )
    world.log(300)
    return world


# share of the way from the behaviour's value to the best one's that is gone at least. Uniform actions are
# no policy to imitate, and the greedy action a_0 = 1 is worse than they are.
LEARNS = {
    "td3": 0.7,
    "td3_bc": 0.7,
    "rebrac": 0.5,
    "uwac_td3": 0.7,
    "unified_rl": 0.2,  # half of the toy log is its noise group, whose box it keeps to
    "cql_sac": 0.5,
    "iql": 0.5,
}


@pytest.mark.parametrize("algorithm", sorted(LEARNS))
def test_it_learns_the_long_term_where_the_greedy_action_is_worse(algorithm, logged):
    settings = logged.settings.model_copy(
        update={"learner": logged.settings.learner.model_copy(update={"algorithms": (algorithm,)})}
    )
    policy = load_policy(settings.data / train(settings, DAY)["pool"][algorithm]["policy"])

    def best(states, rng):
        return np.stack([-np.ones(len(states)), states[:, 1]], axis=1)

    learnt, behaviour, optimal = (
        logged.value(act, 0.95, sessions=400)
        for act in (
            lambda states, rng: policy.act(states),
            lambda states, rng: rng.uniform(-1, 1, (len(states), 2)),
            best,
        )
    )
    assert (learnt - behaviour) / (optimal - behaviour) > LEARNS[algorithm]
