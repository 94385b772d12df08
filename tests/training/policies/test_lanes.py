"""Two lanes: what they give does not depend on whether there are two."""

import copy

import pytest
import torch

from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.lanes import Lanes


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_both_results_come_without_autograd_and_the_threads_are_put_back(threads):
    x = torch.ones(3, requires_grad=True)
    with Lanes(torch.device("cpu")) as lanes, torch.no_grad():
        assert torch.get_num_threads() == 1
        one, other = lanes.both(lambda: x + 1.0, lambda: x * 3.0)
    assert one.tolist() == [2.0] * 3 and other.tolist() == [3.0] * 3
    assert not one.requires_grad and not other.requires_grad
    assert torch.get_num_threads() == threads


def test_either_lanes_error_is_raised_when_both_have_ended(threads):
    ended = []

    def fails():
        raise ValueError("of a lane")

    with Lanes(torch.device("cpu")) as lanes:
        with pytest.raises(ValueError, match="of a lane"):
            lanes.both(fails, lambda: ended.append(2))
        with pytest.raises(ValueError, match="of a lane"):
            lanes.both(lambda: ended.append(1), fails)
        assert lanes.both(lambda: 3, lambda: 4) == (3, 4)
    assert 1 in ended and (threads == 1 or 2 in ended)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_learner_learns_the_same_in_one_lane_and_in_two(precision, random_transitions, small):
    data, learnt = random_transitions(), []
    settings = small(precision=precision, freeze_generator_after=7, batch_size=40)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        learner = BatchRLMTF(settings, data, seed=4)
        points = [learner.step() for _ in range(5)]
        learner = copy.deepcopy(learner)  # in the middle of what is done ahead
        points += [learner.step() for _ in range(5)]
        learnt.append({"points": torch.stack(points), **learner.state()})
    torch.set_num_threads(before)
    for name, tensor in learnt[0].items():
        assert torch.equal(tensor, learnt[1][name]), name
