"""K seeds as one policy: one seed is the plain learner, several are each seed's own and act by their mean."""

import numpy as np
import pytest
import torch

from training.contract.policy import make_actor
from training.policies.bandit import Bandit
from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.ensemble import BanditEnsemble, BatchRLMTFEnsemble, seed_of

EACH = [(BatchRLMTFEnsemble, BatchRLMTF), (BanditEnsemble, Bandit)]
precisions = pytest.mark.parametrize("precision", ["float32", "auto"])


def trained(learner, steps: int = 12):
    points = [learner.step() for _ in range(steps)]
    return learner, torch.stack(points)


@precisions
@pytest.mark.parametrize(("ensemble", "member"), EACH)
def test_one_member_is_the_learner_bit_for_bit(ensemble, member, precision, random_transitions, small):
    """Its points, its checkpoint and its export, also with targets of several steps."""
    config = small(members=1, target_steps=3, precision=precision)
    ours, points = trained(ensemble(config, random_transitions(), 5))
    theirs, expected = trained(member(config, random_transitions(), 5))
    assert torch.equal(points, expected)
    assert set(ours.state()) == set(theirs.state())
    assert all(torch.equal(tensor, ours.state()[name]) for name, tensor in theirs.state().items())
    (tensors, options), (wanted, wanted_options) = ours.export(), theirs.export()
    assert options == wanted_options and set(tensors) == set(wanted)
    assert all(np.array_equal(tensors[name], tensor) for name, tensor in wanted.items())


@precisions
@pytest.mark.parametrize(("ensemble", "member"), EACH)
def test_members_are_learners_of_their_own_seeds(ensemble, member, precision, random_transitions, small):
    config = small(members=3, target_steps=3, precision=precision)
    learner, points = trained(ensemble(config, random_transitions(), 5))
    seeds = [5, seed_of(5, 1), seed_of(5, 2)]
    alone = [trained(member(config, random_transitions(), seed)) for seed in seeds]
    torch.testing.assert_close(points, torch.stack([own for _, own in alone]).mean(dim=0))
    states = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32) * 3.0
    actions = [make_actor(member.actor, *one.export())(states) for one, _ in alone]
    assert np.ptp(actions, axis=0).max() > 0.01  # they do not agree
    served = make_actor(learner.actor, *learner.export())(states)
    np.testing.assert_allclose(served, np.mean(actions, axis=0), atol=1e-6)


@precisions
def test_several_members_resume_bit_for_bit(precision, random_transitions, small):
    def fresh():
        return BatchRLMTFEnsemble(small(members=3, precision=precision), random_transitions(), 5)

    whole, _ = trained(fresh(), 20)
    half, _ = trained(fresh(), 13)
    resumed = fresh()
    resumed.load_state({name: tensor.clone() for name, tensor in half.state().items()})
    trained(resumed, 7)
    assert set(resumed.state()) == set(whole.state())
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def test_a_warm_start_takes_every_members_weights(random_transitions, small):
    def fresh(seed):
        return BatchRLMTFEnsemble(small(members=2), random_transitions(), seed)

    before, _ = trained(fresh(5))
    after = fresh(6)
    after.load_weights(before.state())
    assert after.step_count == 0
    for one, other in zip(before.members, after.members, strict=True):
        for name in one.modules:
            for ours, theirs in zip(
                one.modules[name].parameters(), other.modules[name].parameters(), strict=True
            ):
                assert torch.equal(ours, theirs)


def test_seeds_of_members_differ():
    assert len({seed_of(seed, place) for seed in range(50) for place in range(1, 20)}) == 50 * 19
