import numpy as np
import pytest

from serving.policy.timed import REST_S, TimedPolicy, TooSlow
from training.contract.policy import Policy, PolicyHeader
from training.contract.settings import Settings

SETTINGS = Settings()
STATE = np.zeros((1, SETTINGS.state_spec.width), dtype=np.float32)


class Slow:
    """A policy whose calls take as long as it is told, on a clock of its own."""

    def __init__(self) -> None:
        self.now, self.takes, self.calls = 0.0, 0.0, 0
        header = PolicyHeader("constant", "v1", SETTINGS.state_spec, SETTINGS.fusion)
        self.timed = TimedPolicy(Policy(header, "", self), 0.05, lambda: self.now)

    def __call__(self, states: np.ndarray) -> np.ndarray:
        self.calls += 1
        self.now += self.takes
        return np.zeros((len(states), len(SETTINGS.heads)))


def test_a_quick_policy_acts():
    slow = Slow()
    slow.takes = 0.05
    assert slow.timed.act(STATE).shape == (1, len(SETTINGS.heads)) and slow.timed.version == "v1"


def test_a_slow_policy_rests_and_recovers_by_itself():
    slow = Slow()
    slow.takes = 0.2
    with pytest.raises(TooSlow, match="took 200 ms"):
        slow.timed.act(STATE)
    for _ in range(100):  # nobody waits for it meanwhile
        with pytest.raises(TooSlow, match="rests"):
            slow.timed.act(STATE)
    assert slow.calls == 1
    slow.now += REST_S
    slow.takes = 0.01
    for _ in range(3):
        slow.timed.act(STATE)
    assert slow.calls == 4
