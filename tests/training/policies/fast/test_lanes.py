"""Two lanes: what they give does not depend on whether there are two."""

import threading
import time

import pytest
import torch

from training.policies.fast.lanes import Lanes


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_all_results_come_without_autograd_and_the_threads_are_put_back(threads):
    x = torch.ones(3, requires_grad=True)
    with Lanes() as lanes, torch.no_grad():
        assert torch.get_num_threads() == 1
        for _ in range(20):
            results = lanes.run(
                {
                    "a": lambda _: x + 1.0,
                    "b": lambda _: x * 3.0,
                    "c": lambda result: result("a") + result("b"),
                }
            )
            assert {name: one[0].item() for name, one in results.items()} == {"a": 2.0, "b": 3.0, "c": 5.0}
            assert not any(one.requires_grad for one in results.values())
    assert torch.get_num_threads() == threads


def test_a_lane_that_has_gone_to_sleep_comes_back(threads):
    with Lanes() as lanes:
        for _ in range(3):
            assert lanes.run({"a": lambda _: 1, "b": lambda result: result("a") + 1}) == {"a": 1, "b": 2}
            time.sleep(0.05)


@pytest.mark.parametrize("failing", ["a", "b"])
def test_a_tasks_error_is_raised_when_what_was_begun_has_ended(failing, threads):
    begun, ended = threading.Event(), []

    def fails(_):
        if threads > 1:
            begun.wait()
        raise ValueError("of a task")

    def succeeds(_):
        begun.set()
        time.sleep(0.05)
        ended.append(1)

    tasks = {"a": succeeds, "b": succeeds, failing: fails}
    tasks |= {"c": lambda result: result(failing), "d": lambda result: ended.append(2)}
    with Lanes() as lanes:
        with pytest.raises(ValueError, match="of a task"):
            lanes.run(tasks)
        assert ended == [1] * (threads > 1 or failing == "b")
        assert lanes.run({"a": lambda _: 3, "b": lambda _: 4}) == {"a": 3, "b": 4}
