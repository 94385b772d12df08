"""The compiled step beside the page's: the same draws give the same policy within the precision."""

import copy

import pytest
import torch

from tests.training.policies.fast.compiled import compiled
from training.policies.batchrl_mtf import BatchRLMTF

STEPS = 30
# Rounding to bfloat16 errs by 2^-9 of a number, a gradient of it by about 1 % of its length; and Adam, which
# divides by its size, moves a weight as far for an uncertain gradient as for a certain one. Seen were
# 6 % of the way that the weights go in these steps, and .5 % of what the curves reach.
WAY, CURVES = 0.15, 0.02


@compiled
@pytest.mark.parametrize("freeze", [None, 15])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_many_steps_lead_where_the_pages_do(precision, freeze, random_transitions, small):
    widths = {"generator_hidden": (48, 48), "perturbation_hidden": (40, 33), "critic_hidden": (48, 40)}
    more = widths | {
        "freeze_generator_after": freeze,
        "perturbation_lr": 1e-3,
        "critic_lr": 1e-3,
        "batch_size": 64,
    }
    page, fast = (
        BatchRLMTF(small(precision=p, **more), random_transitions(), seed=3) for p in ("float32", precision)
    )
    assert page.fast is None and fast.fast is not None
    before = {name: tensor.clone() for name, tensor in page.state().items()}
    assert all(torch.equal(fast.state()[name], tensor) for name, tensor in before.items())
    points = [torch.stack([learner.step() for _ in range(STEPS)]) for learner in (page, fast)]
    largest = points[0].abs().amax(dim=0)
    assert ((points[1] - points[0]).abs().amax(dim=0) < CURVES * largest).all(), points
    assert page.step_count == fast.step_count == STEPS
    for name, module in page.modules.items():
        keys = [f"{name}.{key}" for key in module.state_dict()]
        ours, theirs = (
            torch.cat([(learner.state()[key] - before[key]).flatten() for key in keys])
            for learner in (fast, page)
        )
        assert float((ours - theirs).norm()) < WAY * float(theirs.norm()), name


@compiled
def test_one_step_is_of_the_weights_before(random_transitions, small):
    """The order that the paper has: what each gradient is of shows in the curves of steps that go far."""
    fast, page = (
        BatchRLMTF(
            small(precision=p, generator_lr=0.02, perturbation_lr=0.05, critic_lr=0.05, target_interval=1),
            random_transitions(),
            seed=3,
        )
        for p in ("bfloat16", "float32")
    )
    for _ in range(4):
        points = [learner.step() for learner in (fast, page)]
        torch.testing.assert_close(*points, rtol=0.05, atol=0.02)
        tensors = {name: t for name, t in fast.state().items() if not name.startswith("adam.")}
        page.load_weights(tensors)  # so that no step begins where the other's does not


@compiled
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_it_is_the_same_in_one_lane_and_in_two(precision, random_transitions, small):
    data, learnt = random_transitions(), []
    settings = small(precision=precision, freeze_generator_after=7, batch_size=40)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        learner = BatchRLMTF(settings, data, seed=4)
        points = [learner.step() for _ in range(5)]
        tensors = {name: tensor.clone() for name, tensor in learner.state().items()}
        learner = BatchRLMTF(settings, data, seed=4)  # in the middle of what is done ahead
        learner.load_state(tensors)
        points += [learner.step() for _ in range(5)]
        learnt.append({"points": torch.stack(points), **learner.state()})
    torch.set_num_threads(before)
    for name, tensor in learnt[0].items():
        assert torch.equal(tensor, learnt[1][name]), name


def test_a_learner_is_copied_by_its_state(random_transitions, small):
    """What a compiled step knows is where the parameters lie, which a copy would not have."""
    learner = BatchRLMTF(small(precision="auto"), random_transitions(), seed=4)
    if learner.fast is None:
        copy.deepcopy(learner).step()
        return
    with pytest.raises((TypeError, ValueError), match="pointer"):
        copy.deepcopy(learner)
